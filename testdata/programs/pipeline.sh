# A pipeline of shell children that never stops moving data: numbers in, numbers out, none lost.
cd "$1" || exit 1
produce() {
	i=0
	while [ ! -e go ]; do
		echo $i
		i=$((i + 1))
		[ $i = 500 ] && : > ready.tmp && mv ready.tmp ready
	done
	echo end
}
produce | sed 's/^/n/' | while read -r line; do echo "$line"; done | tr n ' ' > numbers
last=$(tail -n 2 numbers | head -n 1)
if [ "$(wc -l < numbers)" = $((last + 2)) ] && [ "$(head -n $((last + 1)) numbers | awk '$1 != NR - 1' | wc -l)" = 0 ]; then
	echo PASS > verdict.tmp && mv verdict.tmp verdict
else
	echo "FAIL: $(wc -l < numbers) lines, last $last" > verdict
	exit 1
fi
