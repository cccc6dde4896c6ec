#!/usr/bin/env bash
# Builds or lints the guest: the ring-3 program, then the kernel that carries it.
#
#   scripts/guest.sh build     $TARGET/images/memvisor-guest.elf
#   scripts/guest.sh clippy    both crates, warnings are errors
#
# scripts/setup.sh decided which toolchain; see there.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

readonly GUEST_TRIPLE=x86_64-unknown-none
readonly OUT=$TARGET/guest
readonly PRODUCTS=$OUT/$GUEST_TRIPLE/guest

[ -f "$TARGET/guest-toolchain.env" ] || scripts/setup.sh build
. "$TARGET/guest-toolchain.env"

# Flags meant for the host (sanitizers, target-cpu) must not reach ring 0.
export PATH=$PWD/scripts:$PATH
unset CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_RUSTFLAGS CARGO_BUILD_TARGET
export CARGO_TARGET_DIR=$OUT
# Both toolchains link with GNU ld, for which the linker script is written; memvisor-ld gives a kernel its symbols.
# Frame pointers: a panic prints a backtrace by them.
export RUSTFLAGS="-Clinker=memvisor-ld -Clinker-flavor=ld -Cforce-frame-pointers=yes"
# The kernel's first page tables map it as one block, which ld warns about since binutils 2.39.
ld --help | grep -q no-warn-rwx-segments && RUSTFLAGS+=" -Clink-arg=--no-warn-rwx-segments"
case $GUEST_TOOLCHAIN in
rustup)
    cargo=cargo
    flags=()
    ;;
source)
    # cargo finds rustc, and clippy its driver, through PATH.
    cargo=/usr/bin/cargo
    export PATH=$PWD/scripts:/usr/bin:$PATH RUSTC_BOOTSTRAP=1
    flags=(-Zbuild-std=core,alloc,compiler_builtins -Zbuild-std-features=compiler-builtins-mem)
    ;;
*) die "$TARGET/guest-toolchain.env names no toolchain; run 'make setup'" ;;
esac
flags+=(--target $GUEST_TRIPLE --profile guest)

build() {
    "$cargo" build "${flags[@]}" -p memvisor-user
    MEMVISOR_USER_ELF=$PRODUCTS/memvisor-user "$cargo" build "${flags[@]}" -p memvisor-kernel
    local image=$TARGET/images/memvisor-guest.elf
    mkdir -p "${image%/*}"
    # An unchanged image keeps its time, so that the program that embeds it is not built again.
    cmp -s "$PRODUCTS/memvisor-kernel" "$image" || cp "$PRODUCTS/memvisor-kernel" "$image"
    echo "guest image: $image ($(stat -c %s "$image") bytes, toolchain $GUEST_TOOLCHAIN)"
}

clippy() {
    if ! "$cargo" clippy --version >/dev/null 2>&1; then
        echo "SKIPPED: lint of the guest crates: the guest's toolchain ($GUEST_TOOLCHAIN) has no clippy" >&2
        echo "         (Debian: apt-get install rust-web-clippy; rustup: rustup component add clippy)" >&2
        return 0
    fi
    "$cargo" clippy "${flags[@]}" -p memvisor-user -- -D warnings
    # The kernel embeds the program; a lint needs it to exist.
    "$cargo" build -q "${flags[@]}" -p memvisor-user
    MEMVISOR_USER_ELF=$PRODUCTS/memvisor-user "$cargo" clippy "${flags[@]}" -p memvisor-kernel -- -D warnings
}

case ${1:-} in
build) build ;;
clippy) clippy ;;
*) die "guest.sh: say build or clippy" ;;
esac
