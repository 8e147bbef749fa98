#!/bin/bash
# Builds the agent as README.md says. Checks that it is one static file of at most 3 MB that serves
# real connections with an empty folder as its root. $1 is the folder of the other programs
# (default: target/release/examples), or --build to build it only.
set -euo pipefail
cd "$(dirname "$0")/../.."

limit=3000000
target=x86_64-unknown-linux-gnu
programs=${1:-target/release/examples}
[ "$(uname -sm)" = "Linux x86_64" ] || { echo "the build is for Linux on x86-64"; exit 77; }
[ "$programs" = --build ] || tests/services/install.sh

env -u RUSTFLAGS cargo build --config examples/agent/static.toml --profile small \
    -p tunnel-programs --example agent --target $target
[ "$programs" != --build ] || exit 0
agent=${CARGO_TARGET_DIR:-target}/$target/small/examples/agent

kind=$(file -b "$agent")
size=$(stat -c %s "$agent")
echo "$size bytes, $kind"
[[ $kind == *"static-pie linked"* || $kind == *"statically linked"* ]] ||
    { echo "FAIL  not static: $kind"; exit 1; }
# The linker has nothing to load for it. `ldd` may fail for such a file.
said=$(LC_ALL=C ldd "$agent" 2>&1 || true)
grep -qE 'statically linked|not a dynamic executable' <<<"$said" ||
    { echo "FAIL  needs $said"; exit 1; }
[ "$size" -le $limit ] || { echo "FAIL  larger than $limit bytes"; exit 1; }

exec tests/services/run.py --programs "$programs" --agent "$agent" --empty-root \
    --only agent --only nginx --only dns --only netcat
