#!/usr/bin/env bash
# Opens a dump of a running stock Linux with crash and drgn and Debian's debug symbols, and compares what they read
# with what that Linux printed about itself.
#
#   scripts/linux/debuggers.sh DUMP CONSOLE
#
# Packages are downloaded and unpacked once to $TARGET/linux/debug, nothing is installed. The symbols are a package of
# 900 MB, of which 600 MB stay. A tool that cannot be had is named in a line "NOT RUN: ..."; without symbols
# gdb is asked whether it opens the dump.
# Exit codes: 0 all that ran agrees, 1 something differs, 8 nothing could run.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/common.sh

[ $# = 2 ] || die "debuggers.sh DUMP CONSOLE"
dump=$(realpath "$1") console=$(realpath "$2")
readonly DEBUG=$TARGET/linux/debug
readonly ROOT=$DEBUG/root
release=$(cat "$TARGET/nested/l1/release")
readonly SYMBOLS=$ROOT/usr/lib/debug/boot/vmlinux-$release
ran=0 failed=0

# Unpacks PACKAGES, of the symbols only the kernel's.
unpack() { # PACKAGE...
    local work=$DEBUG/download deb
    rm -rf "$work"
    mkdir -p "$work" "$ROOT"
    (cd "$work" && apt-get download -qq "$@") >/dev/null 2>"$DEBUG/apt.log" || return 1
    for deb in "$work"/*.deb; do
        case $deb in
        *-dbg_*) dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$ROOT" --no-same-owner --wildcards './usr/lib/debug/boot/vmlinux-*' || return 1 ;;
        *) dpkg-deb -x "$deb" "$ROOT" || return 1 ;;
        esac
    done
    rm -rf "$work"
}

not_run() {
    echo "NOT RUN: Linux's dump in $1: $2"
}

# What must be the same, else the line says what is not.
same() { # WHAT PRINTED READ
    if [ -n "$2" ] && [ "$2" = "$3" ]; then
        echo "PASS $1: $3"
    else
        echo "FAIL $1: Linux printed '$2', read is '$3'"
        failed=1
    fi
}

by_gdb() {
    have gdb || { not_run gdb "it is not installed"; return; }
    ran=1
    local text
    text=$(gdb -nx -batch -iex 'set auto-load off' -ex 'info registers rip' -core "$dump" 2>&1)
    same "linux-dump/gdb opens it" yes "$(grep -q '^rip ' <<<"$text" && echo yes || echo "$text" | tail -n 1)"
}

printed() { sed -n "s/^linux: $1//p" "$console" | tr -d '\r'; }
libraries="$ROOT/usr/lib/x86_64-linux-gnu:$ROOT/lib/x86_64-linux-gnu"

by_crash() {
    [ -x "$ROOT/usr/bin/crash" ] || unpack crash libsnappy1v5 liblzo2-2 || {
        not_run crash "apt does not give it: $(tail -n 1 "$DEBUG/apt.log")"
        return
    }
    ran=1
    local text offset
    # crash knows the kernel's move by itself only in dumps of kdump.
    offset=$(LC_ALL=C grep -aom 1 'KERNELOFFSET=[0-9a-f]*' "$dump" | cut -d = -f 2)
    text=$(printf 'sys\nkmem -n\nbt -a\nquit\n' | LD_LIBRARY_PATH=$libraries timeout 120 "$ROOT/usr/bin/crash" --kaslr="0x$offset" \
        --no_scroll "$SYMBOLS" "$dump" 2>&1 || true)
    echo "$text" >"$DEBUG/crash.log"
    same "linux-dump/crash: release" "$release" "$(sed -n 's/^ *RELEASE: //p' <<<"$text" | tail -n 1)"
    same "linux-dump/crash: CPUs" "$(printed 'cpu ' | grep -c .)" "$(sed -n 's/^ *CPUS: //p' <<<"$text" | tail -n 1)"
    same "linux-dump/crash: nodes" "$(printed 'present ' | cut -d ' ' -f 1 | sort -n | xargs)" \
        "$(awk '/^NODE +SIZE/ { getline; print $1 }' <<<"$text" | sort -n | xargs)"
    # In MB of 1024 * 1024 with one decimal.
    same "linux-dump/crash: memory" "$(printed 'present ' | awk '{ pages += $2 } END { printf "%.1f MB", pages / 256 }')" \
        "$(sed -n 's/^ *MEMORY: //p' <<<"$text" | tail -n 1)"
    same "linux-dump/crash: a back trace of each CPU" "$(printed 'cpu ' | grep -c .)" \
        "$(grep -c '^PID: .* CPU: ' <<<"$text")"
}

by_drgn() {
    [ -d "$ROOT/usr/lib/python3/dist-packages/drgn" ] || unpack python3-drgn libkdumpfile10 libdw1 libelf1 libgomp1 || {
        not_run drgn "apt does not give it: $(tail -n 1 "$DEBUG/apt.log")"
        return
    }
    # Built for the distribution's Python.
    PYTHONPATH=$ROOT/usr/lib/python3/dist-packages LD_LIBRARY_PATH=$libraries /usr/bin/python3 -c 'import drgn' 2>"$DEBUG/drgn.log" || {
        not_run drgn "$(tail -n 1 "$DEBUG/drgn.log")"
        return
    }
    ran=1
    local text
    text=$(PYTHONPATH=$ROOT/usr/lib/python3/dist-packages LD_LIBRARY_PATH=$libraries timeout 120 /usr/bin/python3 -m drgn -q -c "$dump" \
        -s "$SYMBOLS" scripts/linux/look.py 2>&1 || true)
    echo "$text" >"$DEBUG/drgn.log"
    same "linux-dump/drgn: release" "$release" "$(sed -n 's/^release //p' <<<"$text")"
    same "linux-dump/drgn: pages by node" "$(printed 'present ' | sort -n | xargs)" "$(sed -n 's/^present //p' <<<"$text" | sort -n | xargs)"
    same "linux-dump/drgn: managed pages by node" "$(printed 'managed ' | sort -n | xargs)" "$(sed -n 's/^managed //p' <<<"$text" | sort -n | xargs)"
    same "linux-dump/drgn: first process" init "$(sed -n 's/^task 1 //p' <<<"$text")"
}

if [ -f "$SYMBOLS" ] || unpack "linux-image-$release-dbg"; then
    by_crash
    by_drgn
else
    not_run "crash and drgn" "apt does not give the kernel's symbols, linux-image-$release-dbg: $(tail -n 1 "$DEBUG/apt.log")"
    by_gdb
fi
[ $failed = 0 ] || exit 1
[ $ran = 1 ] || exit 8
