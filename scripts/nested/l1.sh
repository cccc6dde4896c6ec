#!/usr/bin/env bash
# Boots L1, the stock Linux with KVM on NPT of bed nested, and runs a shell command in it.
#
#   scripts/nested/l1.sh OUT COMMAND [FILE...]
#
# FILEs appear in L1's /bin, and this machine's e2fsprogs, where it has them, in /usr/sbin with their libraries. COMMAND runs in /out, an empty folder whose content is in OUT afterwards,
# beside exit (its exit code), phases, dmesg and console.log. What it prints is printed here as it comes.
#
# Environment:
#   NESTED_CPU      QEMU's -cpu [max,phys-bits=48]; with ",-la57" for a host without 5-level paging
#   NESTED_KERNEL   vmlinux or bzImage [vmlinux: quicker; L1 itself then has 4 levels]
#   NESTED_THREAD   single or multi [single: with a thread for each CPU QEMU 7.2 breaks a guest or L1 now and
#                   then; multi for a Linux as guest, which with single does not wake up; docs/beds.md]
#   NESTED_MEMORY   MiB of RAM of L1 [3072]
#   NESTED_TIMEOUT  seconds for all of it [600]
#   NESTED_APPEND   words for L1's command line
#   NESTED_QEMU     further arguments of QEMU, such as -monitor unix:FILE,server,nowait
#
# Exit codes: the command's; 70 if L1 did not come to its end, with the reason as the last line.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/common.sh

readonly L1=$TARGET/nested/l1
[ $# -ge 2 ] || die "l1.sh OUT COMMAND [FILE...]"
out=$(realpath -m "$1") command=$2
shift 2

give_up() {
    echo "error: bed nested: $*" >&2
    exit 70
}

have qemu-system-x86_64 || give_up "no qemu-system-x86_64; Debian: apt-get install qemu-system-x86"

rm -rf "$out"
mkdir -p "$out"
root=$(mktemp -d "$TARGET/nested/root.XXXXXX")
trap 'rm -rf "$root"' EXIT

mkdir -p "$root/bin"
cp "$L1/busybox" "$root/bin/"
cp -r "$L1/modules" "$root/"
cp scripts/nested/init "$root/init"
[ $# = 0 ] || cp "$@" "$root/bin/"
# Cases with an ext2 make and check it with these. Without them they are skipped, and say so.
mkdir -p "$root/usr/sbin"
for name in mke2fs e2fsck debugfs; do
    program=$(PATH=$PATH:/usr/sbin:/sbin command -v "$name") || continue
    cp -L "$program" "$root/usr/sbin/"
    while read -r library; do
        install -D "$library" "$root$library"
    done < <(ldd "$program" | grep -oE '/[^ ]+')
done
chmod 755 "$root/init" "$root"/bin/*
echo "$command" >"$root/command"
(cd "$root" && find . | "$L1/busybox" cpio -o -H newc 2>/dev/null) >"$out/initramfs.cpio"

kernel=$L1/${NESTED_KERNEL:-vmlinux}
[ -f "$kernel" ] || kernel=$L1/bzImage

# What L1 runs is trusted, so nothing is mitigated; everything else is as its distribution ships it.
append="console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off nokaslr ${NESTED_APPEND:-}"
code=0
# shellcheck disable=SC2086 # NESTED_QEMU is a list of arguments
timeout --foreground "${NESTED_TIMEOUT:-600}" qemu-system-x86_64 -accel "tcg,thread=${NESTED_THREAD:-single}" \
    -cpu "${NESTED_CPU:-max,phys-bits=48}" -smp 2 -m "${NESTED_MEMORY:-3072}" -M q35 -display none -nodefaults -no-reboot \
    -serial stdio -serial "file:$out/out.tgz" -kernel "$kernel" -initrd "$out/initramfs.cpio" -append "$append" ${NESTED_QEMU:-} \
    </dev/null 2>&1 | sed -u 's|\r||g' | tee "$out/console.log" || code=${PIPESTATUS[0]}
rm -f "$out/initramfs.cpio"

tar -x -z -f "$out/out.tgz" -C "$out" 2>/dev/null || {
    [ "$code" = 124 ] && give_up "no end after ${NESTED_TIMEOUT:-600} s (NESTED_TIMEOUT)"
    give_up "L1 ended (QEMU's exit code $code) and sent no results; its console is $out/console.log"
}
rm "$out/out.tgz"
exit_code=$(cat "$out/exit")
[[ $exit_code =~ ^[0-9]+$ ]] || give_up "$exit_code"
exit "$exit_code"
