#!/usr/bin/env bash
# Bed nested: runs suites with memvisor in a stock Linux with KVM on NPT, in QEMU's software CPU.
#
#   scripts/nested/run.sh [SUITE|CASE...]     without names, all that bed kvm has
#
# Two L1s are booted: one whose KVM runs 5-level guests, and for the cases that need a KVM that refuses
# them, one on a CPU without LA57. Results are in $TARGET/test/nested/la57 and .../no-la57: junit.xml,
# results.json, results.ktap, consoles/CASE.log, and of L1 itself console.log and dmesg.
#
# Environment: TEST_ARGS, further arguments of `memvisor test`; and what l1.sh reads.
# Exit codes: those of `memvisor test`, the worse of the two; 70 if an L1 did not come to its end.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/common.sh

readonly TRIPLE=x86_64-unknown-linux-gnu
readonly BUILD=$TARGET/nested/build
readonly MEMVISOR=$BUILD/$TRIPLE/release/memvisor
readonly OUT=$TARGET/test/nested
# 48 physical bits, as AMD's processors have; the default of 40 does not hold machines with RAM at 1 TiB.
readonly CPU=max,phys-bits=48
# What `memvisor test` exits with when no case could run (vmm/src/suite/mod.rs).
readonly NOTHING_RAN=8

have qemu-system-x86_64 || {
    echo "NOT RUN: all cases: no qemu-system-x86_64 (Debian: apt-get install qemu-system-x86)"
    exit $NOTHING_RAN
}

rm -rf "$OUT"
phases=()
# Seconds since the script began, with tenths.
now() { echo $((($(date +%s%N) - start) / 100000000)) | sed 's/.$/.&/; s/^\./0./'; }
start=$(date +%s%N)
phase() { phases+=("$1 at $(now) s"); }

scripts/nested/fetch.sh
phase "L1 there"

# Static, because L1 has no libraries; in a folder of its own, because flags differ from the ordinary build's.
scripts/guest.sh build
env -u CARGO_ENCODED_RUSTFLAGS MEMVISOR_GUEST="$TARGET/images/memvisor-guest.elf" \
    RUSTFLAGS="-Ctarget-feature=+crt-static" CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_STRIP=debuginfo \
    CARGO_TARGET_DIR="$BUILD" cargo build --release --target $TRIPLE -p memvisor
phase "memvisor built"

# Quotes WORDS for a shell.
quoted() { printf '%q ' "$@"; }

in_l1() { # VARIANT CPU NAME...
    local variant=$1 cpu=$2 code=0
    shift 2
    echo "-- nested: -cpu $cpu"
    # shellcheck disable=SC2086 # a list of arguments
    NESTED_CPU=$cpu scripts/nested/l1.sh "$OUT/$variant" "$(quoted memvisor test --bed nested \
        --jobs 2 --keep consoles --report junit=junit.xml --report json=results.json --report ktap=results.ktap \
        ${TEST_ARGS:-} "$@")" "$MEMVISOR" || code=$?
    phase "$variant done"
    return $code
}

codes=()
variant() { # VARIANT CPU NEEDS-FLAG NAME...
    local code=0 flag=$3 cases
    cases=$("$MEMVISOR" test --bed nested --list "$flag" no-la57 "${@:4}") || exit
    [ -n "$cases" ] || return 0
    in_l1 "$1" "$2" "$flag" no-la57 "${@:4}" || code=$?
    codes+=("$code")
}

variant la57 "$CPU" --needs-not "$@"
variant no-la57 "$CPU,-la57" --needs "$@"

# One closing line for both, in the form of `memvisor test`.
sum() { # WORD
    sed -n '/^suites: /p' "$OUT"/*/console.log | grep -oE "[0-9]+ $1" | awk '{ n += $1 } END { print n + 0 }'
}
printf 'nested: %s\n' "${phases[@]}"
echo "suites: $(sum passed) passed, $(sum failed) failed, $(sum skipped) skipped in $(now) s"

# The worst code of all: an L1 that failed, then a failed case; nothing ran only if that holds for both.
worst=$NOTHING_RAN
for code in "${codes[@]}"; do
    case $code in
    70) worst=70 ;;
    "$NOTHING_RAN") ;;
    0) [ "$worst" = $NOTHING_RAN ] && worst=0 ;;
    *) [ "$worst" = 70 ] || worst=$code ;;
    esac
done
exit "$worst"
