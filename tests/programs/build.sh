#!/usr/bin/env bash
# Compiles the C programs of this directory as static programs, for the guest and for comparison on the host.
#
#   tests/programs/build.sh DIRECTORY           DIRECTORY/NAME-static, NAME-static-pie, and with musl NAME-musl
#   tests/programs/build.sh DIRECTORY NAME      DIRECTORY/NAME-static of the sources in folder NAME, unless it is newer than they
#
# Where there is no compiler it says so and ends with 0: there is then nothing to run.
set -euo pipefail
out=$(realpath -m "${1:?a directory for the programs}")
mkdir -p "$out"
cd "$(dirname "$0")"

flags=(-O2 -Wall -Wextra -Werror -pthread)
skip() { echo "SKIPPED: $*" >&2; }

compile() {
    local compiler=$1 kind=$2
    shift 2
    if ! command -v "$compiler" >/dev/null; then
        skip "programs of kind $kind: there is no $compiler (Debian: apt-get install gcc libc6-dev musl-tools)"
        return
    fi
    local source
    for source in *.c; do
        "$compiler" "${flags[@]}" "$@" -o "$out/${source%.c}-$kind" "$source"
    done
}

if [ $# -gt 1 ]; then
    [ -x "$out/$2-static" ] && [ -z "$(find "$2" -newer "$out/$2-static")" ] && exit 0
    command -v gcc >/dev/null || { skip "program $2: there is no gcc (Debian: apt-get install gcc libc6-dev)"; exit 1; }
    gcc "${flags[@]}" -static -o "$out/$2-static" "$2"/*.c
    exit 0
fi

compile gcc static -static
compile gcc static-pie -static-pie
compile musl-gcc musl -static
