#!/bin/bash
# Installs the missing Debian packages that the checks need, those of proxies.sh alone with the
# argument `proxies`. Exits with 77 if that fails.
set -euo pipefail

missing=()
# need PACKAGE FILE : adds the package unless there is such a command or file.
need() {
    command -v "$2" >/dev/null || compgen -G "$2" >/dev/null || missing+=("$1")
}
export PATH=$PATH:/usr/sbin:/sbin
need python3 python3
need curl curl
if [ "${1-}" = proxies ]; then
    need squid squid
    need microsocks microsocks
    need openssl openssl
else
    need postgresql '/usr/lib/postgresql/*/bin/initdb'
    need nginx nginx
    need dnsmasq-base dnsmasq
    need bind9-dnsutils dig
    need chromium chromium
    need python3-websockets '/usr/lib/python3/dist-packages/websockets/__init__.py'
    need rsync rsync
    need haproxy haproxy
    need iproute2 ip
    need netcat-openbsd nc.openbsd
    need file file
fi
[ "${#missing[@]}" != 0 ] || exit 0

cannot() {
    echo "not installed: ${missing[*]}"
    exit 77
}
command -v apt-get >/dev/null || cannot
root=()
[ "$(id -u)" = 0 ] || root=(sudo -n)
# Only the checks start the servers, not the packages.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    # shellcheck disable=SC2064
    trap "${root[*]} rm -f $policy" EXIT
    printf '#!/bin/sh\nexit 101\n' | "${root[@]}" tee "$policy" >/dev/null || cannot
    "${root[@]}" chmod +x "$policy" || cannot
fi
"${root[@]}" apt-get update -qq || cannot
"${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qqy --no-install-recommends \
    "${missing[@]}" || cannot
