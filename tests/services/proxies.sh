#!/bin/bash
# Forwards through Debian's squid and through microsocks, with right and wrong credentials, and with
# each killed in mid-session. $1 is the folder of the programs (default: target/release/examples).
set -euo pipefail
programs=$(realpath "${1:-$(dirname "$0")/../../target/release/examples}")
tests=$(realpath "$(dirname "$0")/..")
export PATH=$PATH:/usr/sbin
# As `unconfigured` of tests/environment.py.
for name in $(compgen -e); do
    case ${name,,} in
    *_proxy | kohakuriver_* | rust_log | log_level) unset "$name" ;;
    esac
done
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
# listens PORT : waits for it.
listens() {
    local end=$((SECONDS + 30))
    until (: <>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; do
        [ "$SECONDS" -lt "$end" ] || fail "nothing listens on port $1"
        sleep 0.1
    done
}
read -r http socks web runner host by_http by_socks < <(PYTHONPATH=$tests python3 -c '
import socket
from environment import next_port
free = []
while len(free) < 7:
    port = next_port()
    try:
        socket.create_server(("0.0.0.0", port)).close()
        free.append(port)
    except OSError:
        pass
print(*free)')

echo served >page
echo '127.0.0.1 cluster.test' >hosts
echo "me:$(openssl passwd -apr1 s3cret)" >passwd
cat >squid.conf <<END
http_port 127.0.0.1:$http
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
start_squid() { start squid -N -f squid.conf; squid=$!; listens "$http"; }
start_socks() {
    start microsocks -i 127.0.0.1 -p "$socks" -u me -P s3cret
    microsocks=$!
    listens "$socks"
}
start_squid
start_socks
start python3 -m http.server "$web" --bind 127.0.0.1
start "$programs/runner" --listen "127.0.0.1:$runner" --target box=127.0.0.1
start "$programs/host" --listen "0.0.0.0:$host" --task "42=box@http://127.0.0.1:$runner"
for port in "$web" "$runner" "$host"; do listens "$port"; done

forward() {
    timeout 20 "$programs/forward" --host "ws://$1:$host" 42 "$web" --local-port 0 \
        --proxy "$2" 2>&1 || true
}
says() { grep -qF "$2" <<<"$1" || fail "not said: $2: $1"; }
fetch() { curl -s --noproxy '*' -m "$2" "http://127.0.0.1:$1/page"; }
serves() { [ "$(fetch "$1" 15)" = served ] || fail "$2"; }
stops() { [ "$(fetch "$1" 3)" != served ] || fail "$2"; }

# Only squid knows this name.
name=cluster.test
says "$(forward $name "http://127.0.0.1:$http")" "wants a name and a password (407)"
says "$(forward $name "http://me:wrong@127.0.0.1:$http")" "does not accept the name and password"
says "$(forward $name http://127.0.0.1:1)" "cannot be reached"
start env "HTTP_PROXY=http://me:s3cret@127.0.0.1:$http" \
    "$programs/forward" --host "ws://$name:$host" 42 "$web" --local-port "$by_http"
listens "$by_http"
serves "$by_http" "through squid"
kill -9 "$squid"
stops "$by_http" "past a squid that died"
start_squid
serves "$by_http" "through a squid that died and came back"

# This machine by an address that is not exempt from proxies. A direct connection would work too.
here=0.0.0.0
wrong=$(forward $here "socks5h://me:wrong@127.0.0.1:$socks")
says "$wrong" "does not accept the name and password"
says "$(forward $here "socks5h://127.0.0.1:$socks")" "it wants a name and a password"
start env "ALL_PROXY=socks5h://me:s3cret@127.0.0.1:$socks" \
    "$programs/forward" --host "ws://$here:$host" 42 "$web" --local-port "$by_socks"
listens "$by_socks"
serves "$by_socks" "through microsocks"
kill -9 "$microsocks"
stops "$by_socks" "past a microsocks that died"
start_socks
serves "$by_socks" "through a microsocks that died and came back"
grep -q 's3cret' errors && fail "a password was logged"
echo "passed"
