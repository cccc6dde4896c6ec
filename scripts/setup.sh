#!/usr/bin/env bash
# Finds what this machine lacks for building and testing memvisor, and installs it.
#
#   scripts/setup.sh build    what `make build` needs: a C linker and a toolchain for the guest
#   scripts/setup.sh all      also what the tests use: QEMU, iasl, gdb, e2fsprogs
#
# Idempotent, and quick when nothing is missing. Packages come from apt, the guest's target from
# rustup. A missing test tool that cannot be installed is reported and costs its tests only; a
# missing build tool ends with exit code 1 and the command to run.
#
# Which toolchain builds the guest is written to $TARGET/guest-toolchain.env, read by scripts/guest.sh:
#   rustup   the active toolchain has (or rustup could add) the target x86_64-unknown-none
#   source   a distribution's rustc with the library's source: core and alloc are built from it
# GUEST_TOOLCHAIN=rustup|source in the environment asks for one of them.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

want=${1:-all}
case $want in build | all) ;; *) die "setup.sh: '$want' is neither build nor all" ;; esac

readonly GUEST_TRIPLE=x86_64-unknown-none
readonly MIN_RUST=95 # 1.95: the workspace's rust-version
ask=${GUEST_TOOLCHAIN:-auto}
case $ask in auto | rustup | source) ;; *) die "GUEST_TOOLCHAIN=$ask: use rustup, source or auto" ;; esac

# --- apt ---------------------------------------------------------------------------------------

apt_fresh=no

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

can_install() {
    have apt-get && { [ "$(id -u)" = 0 ] || { have sudo && sudo -n true 2>/dev/null; }; }
}

# Installs packages; the lists are refreshed first, because stale ones name versions that are too old or gone.
apt_install() {
    can_install || return 1
    if [ $apt_fresh = no ]; then
        say "apt-get update"
        as_root apt-get update -qq || say "apt-get update reported errors; going on with the lists there are"
        apt_fresh=yes
    fi
    say "apt-get install $*"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        -o Dpkg::Use-Pty=0 "$@" >"$TARGET/setup-apt.log" 2>&1 || {
        tail -n 5 "$TARGET/setup-apt.log" >&2
        return 1
    }
}

by_hand() {
    if have apt-get; then echo "sudo apt-get update && sudo apt-get install -y $*"
    else echo "your package manager's equivalent of: apt-get install $*"; fi
}

# --- the pieces --------------------------------------------------------------------------------

need_rust() {
    have cargo && return
    die "no cargo: install Rust 1.$MIN_RUST or later first (https://rustup.rs)"
}

need_linker() {
    have cc && have ld && return
    say "no C linker (cc, for host programs) or no GNU ld (for the guest)"
    apt_install gcc libc6-dev binutils || die "install a C linker: $(by_hand gcc libc6-dev binutils)"
}

target_installed() {
    [ -d "$(rustc --print sysroot)/lib/rustlib/$GUEST_TRIPLE/lib" ]
}

# The second number of `rustc 1.N.P`; 0 if it does not run.
minor_of() {
    "$1" --version 2>/dev/null | sed -n 's/^rustc 1\.\([0-9]*\)\..*/\1/p' | grep . || echo 0
}

# A rustc outside of rustup with its library's source: what building core needs.
source_installed() {
    [ -x /usr/bin/cargo ] && [ -x /usr/bin/rustc ] || return 1
    [ "$(minor_of /usr/bin/rustc)" -ge $MIN_RUST ] || return 1
    [ -f "$(/usr/bin/rustc --print sysroot)/lib/rustlib/src/rust/library/core/src/lib.rs" ]
}

rustup_add() {
    have rustup || return 1
    say "rustup target add $GUEST_TRIPLE"
    timeout 180 rustup target add $GUEST_TRIPLE >"$TARGET/setup-rustup.log" 2>&1 && target_installed && return
    say "rustup could not: $(grep -i error "$TARGET/setup-rustup.log" | head -n 1 || true)"
    return 1
}

SOURCE_PACKAGES="rustc-web cargo-web rust-web-src rust-web-clippy"

source_add() {
    say "taking the distribution's compiler with the library's source instead"
    # shellcheck disable=SC2086 # a list of packages
    apt_install $SOURCE_PACKAGES && source_installed
}

choose_guest_toolchain() {
    if [ "$ask" != source ] && target_installed; then echo rustup
    elif [ "$ask" != rustup ] && source_installed; then echo source
    elif [ "$ask" != source ] && rustup_add; then echo rustup
    elif [ "$ask" != rustup ] && source_add; then echo source
    else return 1; fi
}

need_guest_toolchain() {
    local kind
    kind=$(choose_guest_toolchain) || die "no compiler for $GUEST_TRIPLE, needed for the guest kernel: \
run 'rustup target add $GUEST_TRIPLE', or: $(by_hand "$SOURCE_PACKAGES")"
    local decision="GUEST_TOOLCHAIN=$kind"
    local file=$TARGET/guest-toolchain.env
    if [ "$(cat "$file" 2>/dev/null)" != "$decision" ]; then
        say "guest toolchain: $kind"
        echo "$decision" >"$file"
    fi
}

want_tools() {
    local missing=()
    have qemu-system-x86_64 || missing+=(qemu-system-x86)
    have iasl || missing+=(acpica-tools)
    have gdb || missing+=(gdb)
    # Where only root's PATH leads.
    have mke2fs || [ -x /usr/sbin/mke2fs ] || [ -x /sbin/mke2fs ] || missing+=(e2fsprogs)
    # For tests/programs; the first is there with the linker.
    have musl-gcc || missing+=(musl-tools)
    # The lint of the guest needs the clippy of the guest's own toolchain.
    grep -q source "$TARGET/guest-toolchain.env" && [ ! -x /usr/bin/cargo-clippy ] && missing+=(rust-web-clippy)
    [ ${#missing[@]} = 0 ] && return
    say "test tools missing: ${missing[*]}"
    apt_install "${missing[@]}" ||
        say "checks that use ${missing[*]} will be skipped; to have them: $(by_hand "${missing[@]}")"
}

mkdir -p "$TARGET"
need_rust
need_linker
need_guest_toolchain
[ "$want" = all ] && want_tools
exit 0
