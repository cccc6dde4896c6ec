#!/usr/bin/env bash
# Makes images/programs.cpio: images/busybox.cpio with the C programs of this directory in /programs, and /programs/all,
# which runs them.
#
#   tests/programs/image.sh [OUT]     OUT: default images/programs.cpio; at once if it is newer than what it is made of
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/common.sh

out=$(realpath -m "${1:-images/programs.cpio}")
readonly BASE=images/busybox.cpio
readonly BUSYBOX=$TARGET/busybox/busybox

scripts/busybox/image.sh
[ -f "$out" ] && [ -z "$(find "$BASE" tests/programs -newer "$out" -print -quit)" ] && exit 0

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
tests/programs/build.sh "$root/programs"
[ -n "$(ls -A "$root/programs")" ] || die "no program could be compiled: apt-get install gcc libc6-dev musl-tools"
rm -f "$root"/programs/differential-* # make differential runs it
strip "$root"/programs/*
cp tests/programs/all "$root/programs/all"
chmod 755 "$root"/programs/*
mkdir -p "${out%/*}"
# An initramfs may be several archives, one after the other.
{ cat "$BASE"; cd "$root"; find . | LC_ALL=C sort | "$BUSYBOX" cpio -o -H newc -R 0:0 2>/dev/null; } >"$out.new"
mv "$out.new" "$out"
say "programs: $out ($(stat -c %s "$out") bytes)"
