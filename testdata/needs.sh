#!/bin/sh
# Says what the tests need on this machine, what they would like to have, and how to get it.
missing=
need() { # command, package, what for
	command -v "$1" >/dev/null 2>&1 || { echo "missing: $1 ($3): apt-get install $2"; missing=1; }
}
like() {
	command -v "$1" >/dev/null 2>&1 || echo "not here, its tests are skipped: $1 ($3): apt-get install $2"
}
[ "$(id -u)" = 0 ] || { echo "the tests stop, trace and rebuild processes: run them as root"; exit 1; }
need go golang "Go 1.26 or newer; from https://go.dev/dl if the distribution's is older"
need gcc "gcc libc6-dev" "workloads are small C programs"
like python3 python3 "a real program that is dumped"
like perl perl "a real program that is dumped"
like make make "a build that is dumped in flight"
for server in redis-server/redis-server memcached/memcached nginx/nginx-light haproxy/haproxy psql/postgresql mariadbd/mariadb-server-core mariadb/mariadb-client-core node/nodejs \
	java/openjdk-17-jre-headless sqlite3/sqlite3 script/bsdutils tmux/tmux vi/vim-tiny sshd/openssh-server rsyslogd/rsyslog \
	dnsmasq/dnsmasq-base dbus-daemon/dbus-daemon; do
	like ${server%/*} ${server#*/} "a server that is dumped with clients connected"
done
[ -n "$CRIU_PEER" ] || echo "not here, its tests are skipped: CRIU_PEER=/path/to/criu (criu 4.2, for interop tests)"
[ -z "$missing" ]
