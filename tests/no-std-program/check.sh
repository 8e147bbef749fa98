#!/bin/bash
# Builds the programs without any library, checks their contents, and runs the golden vectors.
# Needs cargo, a C compiler with binutils, and python3. The programs are for Linux on x86-64.
# With pipefail, grep has to read to the end: `grep -q` makes its writer fail.
set -euo pipefail
cd "$(dirname "$0")"

limit=4096
out=target/x86_64-unknown-linux-gnu/release
panics='panic|unwrap_failed|expect_failed|slice_.*fail|index_fail|slice_error_fail'
panics+='|rust_begin_unwind|copy_from_slice.*fail'

fail() {
    echo "$*" >&2
    exit 1
}

# The check must be able to fail: an index that may be out of bounds links a panic function.
cargo build --quiet --release --bin wire --features can-panic
nm --demangle "$out/wire" | grep -E "$panics" > /dev/null ||
    fail "a program that can panic shows no panic function"

cargo build --quiet --release --bins
nm "$out/wire" | grep ' _start$' > /dev/null || fail "wire: no symbols to check"
found=$(nm --demangle "$out/wire" | grep -E "$panics" || true)
[ -z "$found" ] || fail "wire: can panic: $found"
text=$(size -A -d "$out/wire" | awk '$1 == ".text" { print $2 }')
[ "$text" -lt "$limit" ] || fail "wire: $text bytes of code, allowed are fewer than $limit"
! readelf --dynamic "$out/wire" | grep NEEDED > /dev/null || fail "wire: needs a shared library"
ran=$(python3 run_vectors.py "$out/wire")

echo "wire: $text of $limit bytes of code, no panic function, $ran"

for program in session resume; do
    nm "$out/$program" | grep ' _start$' > /dev/null || fail "$program: no symbols to check"
    ! readelf --dynamic "$out/$program" | grep NEEDED > /dev/null ||
        fail "$program: needs a shared library"
    said=$("$out/$program") || fail "$program: step $? failed"
    text=$(size -A -d "$out/$program" | awk '$1 == ".text" { print $2 }')
    echo "$program: $text bytes of code, ran $said"
done
