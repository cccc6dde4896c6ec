#!/usr/bin/env bash
# Makes images/busybox.cpio: Debian's busybox-static as shell and init of the guest.
#
#   scripts/busybox/image.sh [OUT]     OUT: default images/busybox.cpio; at once if it is newer than what it is made of
#
# The package is downloaded and unpacked once, into $TARGET/busybox; nothing is installed.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/common.sh

out=$(realpath -m "${1:-images/busybox.cpio}")
readonly CACHE=$TARGET/busybox
readonly BUSYBOX=$CACHE/busybox

fetch() {
    local work
    for tool in apt-get dpkg-deb; do
        have $tool || die "busybox comes from a Debian or Ubuntu archive: that needs $tool"
    done
    mkdir -p "$CACHE"
    work=$(mktemp -d "$CACHE/fetch.XXXXXX")
    say "busybox: apt-get download busybox-static"
    (cd "$work" && apt-get download -qq busybox-static) 2>"$work/log" ||
        die "cannot download busybox-static: $(tail -n 1 "$work/log"); try 'sudo apt-get update'"
    dpkg-deb -x "$work"/*.deb "$work/root"
    cp "$(find "$work/root" -path '*bin/busybox' | head -n 1)" "$BUSYBOX.new"
    mv "$BUSYBOX.new" "$BUSYBOX"
    rm -rf "$work"
}

# Bed nested has it already, from the same package.
[ -f "$BUSYBOX" ] || { [ -f "$TARGET/nested/l1/busybox" ] && mkdir -p "$CACHE" && cp "$TARGET/nested/l1/busybox" "$BUSYBOX"; } || fetch
if [ -f "$out" ] && [ "$out" -nt "$BUSYBOX" ] && [ "$out" -nt scripts/busybox/init ] &&
    [ "$out" -nt scripts/busybox/tour.sh ] && [ "$out" -nt scripts/busybox/proc.sh ] && [ "$out" -nt scripts/busybox/log.sh ] &&
    [ "$out" -nt scripts/busybox/check.sh ] && [ "$out" -nt "$0" ]; then
    exit 0
fi

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/{bin,sbin,dev,proc,tmp,etc,root,usr/bin,usr/sbin} "${out%/*}"
cp "$BUSYBOX" "$root/bin/busybox"
cp scripts/busybox/init "$root/init"
cp scripts/busybox/tour.sh scripts/busybox/proc.sh scripts/busybox/log.sh scripts/busybox/check.sh "$root/root/"
chmod 755 "$root/init" "$root/bin/busybox"
chmod 1777 "$root/tmp"
for applet in $("$BUSYBOX" --list-full); do
    [ -e "$root/$applet" ] && continue
    case $applet in */*) mkdir -p "$root/${applet%/*}" ;; esac
    ln -s /bin/busybox "$root/$applet"
done
echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"
# Sorted, and owned by root, so that the same input gives the same archive but for times.
(cd "$root" && find . | LC_ALL=C sort | "$BUSYBOX" cpio -o -H newc -R 0:0 2>/dev/null) >"$out.new"
mv "$out.new" "$out"
say "busybox: $out ($(stat -c %s "$out") bytes)"
