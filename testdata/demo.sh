#!/bin/sh
# Dumps a running program, shows that it is gone, restores it and shows that it goes on where it was.
# Usage: demo.sh CRIU
set -e
criu=$(realpath "${1:?usage: demo.sh CRIU}")
[ "$(id -u)" = 0 ] || { echo "demo: run me as root: sudo make demo" >&2; exit 1; }
dir=$(mktemp -d)
pid=
finish() {
	[ -z "$pid" ] || kill -9 "$pid" 2>/dev/null || true
	rm -rf "$dir"
}
trap finish EXIT

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
shown() { tail -n 3 "$dir/out"; }

say "1. A shell counts in a session of its own."
cat >"$dir/count" <<'END'
n=0
while :; do
	n=$((n + 1))
	echo "$n: written by pid $$"
	sleep 0.2
done
END
setsid sh "$dir/count" </dev/null >"$dir/out" 2>&1 &
pid=$!
until [ "$(wc -l <"$dir/out")" -ge 5 ]; do sleep 0.1; done
shown

say "2. criu dump: the program goes to files, and is gone."
mkdir "$dir/images"
"$criu" dump -t "$pid" -D "$dir/images" -v4 -o dump.log
if kill -0 "$pid" 2>/dev/null; then
	echo "demo: pid $pid is still there" >&2
	exit 1
fi
echo "pid $pid is gone; $(ls "$dir/images" | wc -l) files, $(du -sh "$dir/images" | cut -f1)"
last=$(tail -n 1 "$dir/out" | cut -d: -f1)

say "3. criu restore: it goes on after $last, with the pid it had."
"$criu" restore -d -D "$dir/images" -v4 -o restore.log
until [ "$(wc -l <"$dir/out")" -ge $((last + 5)) ]; do sleep 0.1; done
shown
seq 1 "$(wc -l <"$dir/out")" | cut -d: -f1 >"$dir/want"
cut -d: -f1 "$dir/out" | head -n "$(wc -l <"$dir/want")" | cmp -s - "$dir/want" || {
	echo "demo: the count has a gap" >&2
	exit 1
}
say "Not one number is missing."
