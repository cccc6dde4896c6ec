#!/usr/bin/env bash
# Bed nested: runs suites with memvisor in a stock Linux with KVM on NPT, in QEMU's software CPU.
#
#   scripts/nested/run.sh [SUITE|CASE...]     without names, the cases of LENGTH
#
# Three L1s are booted: one whose KVM runs 5-level guests; one on a CPU without LA57, for the cases that need a KVM
# that refuses them; and one for a stock Linux as the guest, which gets the kernel that it runs itself. Results are in
# $TARGET/test/nested/la57, .../no-la57 and .../linux: junit.xml, results.json, results.ktap,
# consoles/CASE.log, and of L1 itself console.log and dmesg. With LENGTH=long, the dump
# that they leave is opened by crash and drgn here (scripts/linux/debuggers.sh).
#
# Environment: LENGTH, short, normal or long [normal], for a run without names; TEST_ARGS, further arguments of
# `memvisor test`; and what l1.sh reads.
# Exit codes: those of `memvisor test`, the worse of the two; 70 if an L1 did not come to its end.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/common.sh

readonly L1=$TARGET/nested/l1
readonly OUT=$TARGET/test/nested
readonly DUMP=$OUT/linux/dumps/linux.core
# 48 physical bits, as AMD's processors have; the default of 40 does not hold machines with RAM at 1 TiB.
readonly CPU=max,phys-bits=48
# What `memvisor test` exits with when no case could run (vmm/src/suite/mod.rs).
readonly NOTHING_RAN=8
length=${LENGTH:-normal}
# Some 300 cases of 4 s, two at a time; Linux by Linux takes minutes more.
case $length in
normal) export NESTED_TIMEOUT=${NESTED_TIMEOUT:-2700} ;;
long) export NESTED_TIMEOUT=${NESTED_TIMEOUT:-3600} ;;
esac
# The cases of `backing`, none of which is short, take pages of L1's pools: two of 1 GiB are one guest's RAM.
if [ "$length" != short ]; then
    export NESTED_MEMORY=${NESTED_MEMORY:-6144}
    export NESTED_APPEND=${NESTED_APPEND:-hugepagesz=1G hugepages=2 hugepagesz=2M hugepages=64}
fi

not_run() {
    echo "NOT RUN: all cases: $*"
    exit $NOTHING_RAN
}

have qemu-system-x86_64 || not_run "no qemu-system-x86_64 (Debian: apt-get install qemu-system-x86)"

rm -rf "$OUT"
phases=()
# Seconds since the script began, with tenths.
now() { echo $((($(date +%s%N) - start) / 100000000)) | sed 's/.$/.&/; s/^\./0./'; }
start=$(date +%s%N)
phase() { phases+=("$1 at $(now) s"); }

mkdir -p "$OUT"
scripts/nested/fetch.sh 2> >(tee "$OUT/fetch.log" >&2) || not_run "no L1: $(tail -n 1 "$OUT/fetch.log")"
phase "L1 there"

# L1 has no libraries. The ordinary build needs none either where libc has an archive; elsewhere a static one
# is made, in a folder of its own, because its flags differ.
make --no-print-directory build
memvisor=$TARGET/release/memvisor
if ldd "$memvisor" >/dev/null 2>&1 && ! ldd "$memvisor" 2>&1 | grep -q 'statically linked'; then
    readonly TRIPLE=x86_64-unknown-linux-gnu
    env -u CARGO_ENCODED_RUSTFLAGS MEMVISOR_GUEST="$TARGET/images/memvisor-guest.elf" \
        RUSTFLAGS="-Ctarget-feature=+crt-static" CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_STRIP=debuginfo \
        CARGO_TARGET_DIR="$TARGET/nested/build" cargo build --release --target $TRIPLE -p memvisor
    memvisor=$TARGET/nested/build/$TRIPLE/release/memvisor
fi
# L1's memory is for guests, not for debug information.
mkdir -p "$TARGET/nested/bin"
strip --strip-debug -o "$TARGET/nested/bin/memvisor" "$memvisor" || cp "$memvisor" "$TARGET/nested/bin/memvisor"
make --no-print-directory initrds || say "no initrds: cases that boot one are skipped"
phase "memvisor built"

select=(--length "$length")
[ $# = 0 ] || select=("$@")

# Quotes WORDS for a shell.
quoted() { printf '%q ' "$@"; }

in_l1() { # VARIANT CPU ARGUMENT...
    local variant=$1 cpu=$2 code=0 files=() run="MEMVISOR_INITRDS=/bin memvisor test"
    shift 2
    if [ "$variant" = linux ]; then
        scripts/linux/initramfs.sh "$TARGET/linux/initramfs.cpio"
        files=("$L1/bzImage" "$TARGET/linux/initramfs.cpio")
        [ ! -f "$L1/vmlinux" ] || files+=("$L1/vmlinux")
        run="MEMVISOR_LINUX=/bin memvisor test"
        # To bring a dump back takes a minute.
        [ "$length" != long ] || run="MEMVISOR_LINUX_DUMPS=/out/dumps $run"
        export NESTED_THREAD=${NESTED_THREAD:-multi}
    else
        # Cases with an initrd are skipped without it, and say so.
        mapfile -t files < <(ls images/*.cpio 2>/dev/null)
    fi
    echo "-- nested: -cpu $cpu"
    # shellcheck disable=SC2086 # a list of arguments
    NESTED_CPU=$cpu scripts/nested/l1.sh "$OUT/$variant" "$run $(quoted --bed nested --jobs 2 --keep consoles \
        --report junit=junit.xml --report json=results.json --report ktap=results.ktap ${TEST_ARGS:-} "$@")" \
        "$TARGET/nested/bin/memvisor" "${files[@]}" || code=$?
    phase "$variant done"
    return $code
}

codes=()
variant() { # VARIANT CPU SELECTION...
    local variant=$1 cpu=$2 code=0 cases
    shift 2
    cases=$("$memvisor" test --bed nested --list "$@" "${select[@]}") || exit
    [ -n "$cases" ] || return 0
    in_l1 "$variant" "$cpu" "$@" "${select[@]}" || code=$?
    codes+=("$code")
}

variant la57 "$CPU" --needs-not no-la57 --needs-not linux
variant no-la57 "$CPU,-la57" --needs no-la57
variant linux "$CPU" --needs linux

more_failed=0 more_passed=0
if [ -f "$DUMP" ]; then
    code=0
    scripts/linux/debuggers.sh "$DUMP" "$OUT/linux/consoles/linux-prompt-bzimage.log" || code=$?
    case $code in
    0) more_passed=1 ;;
    "$NOTHING_RAN") ;;
    *) more_failed=1 codes+=(1) ;;
    esac
    phase "debuggers done"
fi

# One closing line for both, in the form of `memvisor test`.
sum() { # WORD
    sed -n '/^suites: /p' "$OUT"/*/console.log | grep -oE "[0-9]+ $1" | awk '{ n += $1 } END { print n + 0 }'
}
printf 'nested: %s\n' "${phases[@]}"
echo "suites: $(($(sum passed) + more_passed)) passed, $(($(sum failed) + more_failed)) failed," \
    "$(sum skipped) skipped in $(now) s"

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
