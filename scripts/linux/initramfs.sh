#!/usr/bin/env bash
# Makes the initramfs of a stock Linux guest: busybox and scripts/linux/init.
#
#   scripts/linux/initramfs.sh OUT      after scripts/nested/fetch.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/common.sh

[ $# = 1 ] || die "initramfs.sh OUT"
out=$(realpath -m "$1")
readonly BUSYBOX=$TARGET/nested/l1/busybox
[ -f "$BUSYBOX" ] || die "no $BUSYBOX; run scripts/nested/fetch.sh"

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root/bin" "${out%/*}"
cp "$BUSYBOX" "$root/bin/busybox"
cp scripts/linux/init "$root/init"
chmod 755 "$root/init" "$root/bin/busybox"
(cd "$root" && find . | "$root/bin/busybox" cpio -o -H newc 2>/dev/null) >"$out.new"
mv "$out.new" "$out"
