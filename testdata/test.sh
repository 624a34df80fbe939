#!/bin/bash
# Runs all tests, shows what failed and what was skipped and why, and counts.
# Usage: test.sh LOG [go test flags and packages]
set -uo pipefail
log=${1:?usage: test.sh LOG ARGS...}
shift
mkdir -p "$(dirname "$log")"
"${GO:-go}" test -v "$@" 2>&1 | tee "$log" | grep --line-buffered -E '^(ok|FAIL|panic:|# |[^ ]+\.go:[0-9]+:[0-9]+:)|no test files' | grep -v 'no test files'
status=${PIPESTATUS[0]}
count() { grep -cE "^ *--- $1: " "$log"; }
if [ "$status" != 0 ]; then
	echo
	echo "What failed (the whole log is $log):"
	grep -E -A 12 '^ *--- FAIL: ' "$log" | grep -vE '^ *--- (PASS|SKIP)' | cut -c1-600
fi
if [ "$(count SKIP)" != 0 ]; then
	echo
	echo "Skipped, and why:"
	grep -E -B 1 '^ *--- SKIP: ' "$log" | sed -nE 's/^ *([a-z0-9_]+_test|harness)\.go:[0-9]+: /    /p; s/^ *--- SKIP: ([^ ]*).*/  \1: see above/p' | paste -d ' ' - - | sed -E 's/^ +(.*)   ([^ ]+): see above/  \2: \1/'
fi
echo
echo "$(count PASS) passed, $(count FAIL) failed, $(count SKIP) skipped"
exit "$status"
