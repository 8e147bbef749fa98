#!/bin/bash
# Forwards through Debian's squid, with right and wrong credentials and with a squid killed in
# mid-session, and through microsocks. $1 is the folder of the programs (default:
# target/release/examples).
set -euo pipefail
programs=$(realpath "${1:-$(dirname "$0")/../../target/release/examples}")
export PATH=$PATH:/usr/sbin
for command in squid microsocks curl openssl python3; do
    command -v $command >/dev/null || { echo "$command is missing"; exit 77; }
done

folder=$(mktemp -d)
started=()
trap 'kill -9 "${started[@]}" 2>/dev/null || true; rm -rf "$folder"' EXIT
chmod 777 "$folder"
cd "$folder"
start() { "$@" >/dev/null 2>>errors & started+=($!); }
fail() { echo "FAIL  $1"; tail -n 20 errors; exit 1; }

echo served >page
echo '127.0.0.1 cluster.test' >hosts
echo "me:$(openssl passwd -apr1 s3cret)" >passwd
cat >squid.conf <<END
http_port 127.0.0.1:13128
hosts_file $folder/hosts
auth_param basic program /usr/lib/squid/basic_ncsa_auth $folder/passwd
acl known proxy_auth REQUIRED
http_access allow known
http_access deny all
pid_filename none
access_log none
cache_log $folder/cache.log
cache deny all
END
start squid -N -f squid.conf
squid=$!
start microsocks -i 127.0.0.1 -p 13129 -u me -P s3cret
start python3 -m http.server 13130 --bind 127.0.0.1
start "$programs/runner" --listen 127.0.0.1:13131 --target box=127.0.0.1
start "$programs/host" --listen 0.0.0.0:13132 --task 42=box@http://127.0.0.1:13131
sleep 2

forward() {
    timeout 20 "$programs/forward" --host "ws://$1:13132" 42 13130 --local-port 0 \
        --proxy "$2" 2>&1 || true
}
says() { grep -qF "$2" <<<"$1" || fail "not said: $2: $1"; }
says "$(forward cluster.test http://127.0.0.1:13128)" "wants a name and a password (407)"
says "$(forward cluster.test http://me:wrong@127.0.0.1:13128)" \
    "does not accept the name and password"
says "$(forward cluster.test http://127.0.0.1:1)" "cannot be reached"
serves() { [ "$(curl -s -m 15 "http://127.0.0.1:$1/page")" = served ] || fail "$2"; }

start env "HTTP_PROXY=http://me:s3cret@127.0.0.1:13128" \
    "$programs/forward" --host ws://cluster.test:13132 42 13130 --local-port 13133
start env "ALL_PROXY=socks5h://me:s3cret@127.0.0.1:13129" \
    "$programs/forward" --host "ws://$(hostname -I | cut -d' ' -f1):13132" 42 13130 \
    --local-port 13134
sleep 2
serves 13133 "through squid"
serves 13134 "through microsocks"
kill -9 "$squid"
sleep 1
start squid -N -f squid.conf
serves 13133 "through a squid that died and came back"
grep -q 's3cret' errors && fail "a password was logged"
echo "passed"
