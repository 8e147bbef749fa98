#!/bin/bash
# Fuzzes each target for SECONDS (default 60) on the nightly toolchain, from its committed corpus:
# as many at a time as there are cores. New inputs stay in target/ and do not change the corpus.
# Usage: fuzz/run.sh [SECONDS] [TARGET...], or fuzz/run.sh --build to build them only.
set -euo pipefail
cd "$(dirname "$0")"

seconds=${1:-60}
shift || true
toolchain=${FUZZ_TOOLCHAIN:-nightly}
targets=("$@")
if [ "${#targets[@]}" = 0 ]; then
    for path in fuzz_targets/*.rs; do
        targets+=("$(basename "$path" .rs)")
    done
fi

# RUSTUP_TOOLCHAIN, not `+nightly`: cargo-fuzz starts cargo again.
export RUSTUP_TOOLCHAIN=$toolchain
cargo fuzz build --features libfuzzer --fuzz-dir .
[ "$seconds" != --build ] || exit 0

# fuzz TARGET : its log is kept; what it found is printed.
fuzz() {
    local target=$1 found=target/found/$1
    mkdir -p "$found"
    cargo fuzz run --features libfuzzer --fuzz-dir . "$target" "$found" "corpus/$target" -- \
        -max_total_time="$seconds" -max_len=16384 -timeout=10 -rss_limit_mb=1024 \
        -print_final_stats=1 >"target/$target.log" 2>&1 || true
    echo "$target:"
    grep -E 'DONE|stat::number_of_executed_units|panicked|SUMMARY' "target/$target.log" || true
    # libFuzzer prints this only when it ended by itself.
    grep -q '^Done ' "target/$target.log" || { tail -60 "target/$target.log"; return 1; }
}

export -f fuzz
export seconds
printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I{} bash -c 'fuzz {}'
