#!/usr/bin/env bash
# Boots a stock Linux under memvisor in bed nested and compares what it says about itself with the machine
# files (suite linux).
#
#   scripts/linux/run.sh [CASE...]     without names, the whole suite
#
# Takes minutes: LINUX_TIMEOUT seconds at most [1800]. Results are in $TARGET/test/linux: junit.xml,
# consoles/CASE.log, and of L1 itself console.log and dmesg.
# Exit codes: those of `memvisor test`; 70 if L1 did not come to its end.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/common.sh

readonly TRIPLE=x86_64-unknown-linux-gnu
readonly BUILD=$TARGET/nested/build
readonly MEMVISOR=$BUILD/$TRIPLE/release/memvisor
readonly LINUX=$TARGET/linux

scripts/nested/fetch.sh
scripts/linux/initramfs.sh "$LINUX/initramfs.cpio"

# As scripts/nested/run.sh builds it, so that both share it.
scripts/guest.sh build
env -u CARGO_ENCODED_RUSTFLAGS MEMVISOR_GUEST="$TARGET/images/memvisor-guest.elf" \
    RUSTFLAGS="-Ctarget-feature=+crt-static" CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_STRIP=debuginfo \
    CARGO_TARGET_DIR="$BUILD" cargo build --release --target $TRIPLE -p memvisor

[ $# -gt 0 ] || set -- linux
# The guest is the kernel that L1 runs, too. Two RAM images of a Linux do not fit beside each other.
NESTED_CPU=max,phys-bits=48 NESTED_TIMEOUT=${LINUX_TIMEOUT:-1800} \
    scripts/nested/l1.sh "$TARGET/test/linux" "MEMVISOR_LINUX=/bin memvisor test --bed nested --jobs 1 \
        --keep consoles --report junit=junit.xml $(printf '%q ' "$@")" \
    "$MEMVISOR" "$TARGET/nested/l1/bzImage" "$TARGET/nested/l1/vmlinux" "$LINUX/initramfs.cpio"
