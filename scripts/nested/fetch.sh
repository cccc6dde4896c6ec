#!/usr/bin/env bash
# Fetches what bed nested boots: the distribution's own kernel with its KVM modules, and busybox.
#
#   scripts/nested/fetch.sh     fills $TARGET/nested/l1; at once if that is complete
#
# Packages are downloaded and unpacked, nothing is installed and no privilege is needed. What it leaves:
#   bzImage     the stock kernel as its package has it
#   vmlinux     the same uncompressed, with a PVH entry; missing if it could not be unpacked
#   modules/    kvm-amd and what it depends on, uncompressed; `order` lists them as they must be loaded
#   disk/       the same of a virtio disk with ext2 on it
#   busybox     statically linked
#   release     the kernel's version
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/common.sh

readonly L1=$TARGET/nested/l1
# The kernel packages that are tried, in this order: Debian's, Ubuntu's.
readonly KERNELS="linux-image-amd64 linux-image-generic"

[ -f "$L1/release" ] && [ -f "$L1/disk/order" ] && exit 0

for tool in apt-get apt-cache dpkg-deb xz; do
    have $tool || die "bed nested takes its kernel from a Debian or Ubuntu archive and needs $tool"
done

# The package that a metapackage stands for: the newest of those it depends on whose names match.
dependency() { # PACKAGE PATTERN
    apt-cache depends "$1" 2>/dev/null | sed -n 's/^ *Depends: //p' | grep -E "$2" | sort -V | tail -n 1
}

kernel_packages() {
    local meta image modules
    for meta in $KERNELS; do
        image=$(dependency "$meta" '^linux-image-[0-9]') || continue
        # Debian's image holds the modules, Ubuntu's depends on them.
        modules=$(dependency "$image" '^linux-modules-[0-9]') || true
        echo "$image $modules"
        return
    done
    return 1
}

work=$(mktemp -d "$TARGET/nested.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/deb" "$work/root" "$work/l1/modules" "$work/l1/disk"

packages=$(kernel_packages) || die "no kernel package ($KERNELS) in apt's lists: run 'sudo apt-get update'"
say "bed nested: apt-get download $packages busybox-static"
# shellcheck disable=SC2086 # a list of packages
(cd "$work/deb" && apt-get download -qq $packages busybox-static) 2>"$work/apt.log" ||
    die "cannot download $packages busybox-static: $(tail -n 1 "$work/apt.log"); try 'sudo apt-get update'"

for deb in "$work"/deb/*.deb; do
    # A kernel unpacks to 400 MB, of which these files are 10.
    dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$work/root" --wildcards --no-same-owner \
        './boot/vmlinuz-*' '*/busybox' '*/irqbypass.ko*' '*/ccp.ko*' '*/kvm.ko*' '*/kvm-amd.ko*' \
        '*/virtio*.ko*' '*/ext4.ko*' '*/jbd2.ko*' '*/mbcache.ko*' '*/crc16.ko*' '*/crc32c_generic.ko*' 2>/dev/null || true
done

image=$(find "$work/root/boot" -name 'vmlinuz-*' | head -n 1)
[ -n "$image" ] || die "$packages holds no kernel image"
cp "$image" "$work/l1/bzImage"
cp "$(find "$work/root" -path '*bin/busybox' | head -n 1)" "$work/l1/busybox" || die "busybox-static holds no busybox"

# Writes FILE uncompressed to standard output.
plain() { # FILE
    case $(head -c 4 "$1" | od -An -tx1 | tr -d ' \n') in
    fd377a58) xz -dc "$1" ;;
    28b52ffd) zstd -dcq "$1" ;;
    1f8b*) gzip -dc "$1" ;;
    *) cat "$1" ;;
    esac
}

# Unpacks NAME's module into FOLDER and, before it, those that it names as its dependencies. What is not a module is in the kernel.
add_module() { # FOLDER NAME
    local file dep out=$work/l1/$1/$2.ko
    [ -f "$out" ] && return
    file=$(find "$work/root" -name "$2.ko*" -o -name "${2//_/-}.ko*" | head -n 1)
    [ -n "$file" ] || { [ "$1" = disk ] && return; die "$packages holds no module $2"; }
    plain "$file" >"$out"
    for dep in $(tr '\0' '\n' <"$out" | sed -n 's/^depends=//p' | head -n 1 | tr ',' ' '); do add_module "$1" "$dep"; done
    echo "$2" >>"$work/l1/$1/order"
}
add_module modules kvm-amd
for module in crc32c_generic virtio_pci virtio_blk ext4; do add_module disk $module; done
touch "$work/l1/disk/order"

# The payload of a bzImage lies where its setup header says (Linux: Documentation/arch/x86/boot.rst,
# fields setup_sects, payload_offset, payload_length); its last 4 bytes are the unpacked size.
unpack_bzimage() { # BZIMAGE OUT
    local number=(od -An -tu4 -N4) setup payload length
    setup=$(od -An -tu1 -j $((0x1f1)) -N1 "$1")
    payload=$("${number[@]}" -j $((0x248)) "$1")
    length=$("${number[@]}" -j $((0x24c)) "$1")
    tail -c +$(((setup + 1) * 512 + payload + 1)) "$1" | head -c $((length - 4)) >"$work/payload"
    plain "$work/payload" >"$2" && [ "$(head -c 4 "$2" | od -An -c | tr -d ' \n')" = '177ELF' ]
}
unpack_bzimage "$work/l1/bzImage" "$work/l1/vmlinux" || {
    say "bed nested: cannot unpack the kernel, its bzImage will be booted, which takes seconds longer"
    rm -f "$work/l1/vmlinux"
}

echo "${image##*/vmlinuz-}" >"$work/l1/release"
mkdir -p "$TARGET/nested"
rm -rf "$L1"
mv "$work/l1" "$L1"
say "bed nested: Linux $(cat "$L1/release") in $L1"
