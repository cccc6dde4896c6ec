#!/usr/bin/env bash
# Makes images/differential.cpio and images/differential-short.cpio: the program of tests/programs/differential, sequences, and what the
# Linux of this machine does with each of them now. The guest compares itself with that (suite differential).
#
#   tests/differential/image.sh [FOLDER]     FOLDER: default images
#
# Always made anew: what is expected comes from the kernel that runs here.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/common.sh

out=$(realpath -m "${1:-images}")
mkdir -p "$out"
tests/programs/build.sh "$TARGET/programs" differential
cargo build --release -q -p memvisor-differential
pack() { "$TARGET/release/memvisor-differential" pack --program "$TARGET/programs/differential-static" "$@"; }
pack --sequences 300 --out "$out/differential.cpio"
# A sequence takes seconds where ring 0 is emulated.
pack --only mmap/no-type --only mremap/move-back-merges --only file/shared --only fault/rights --only fork/both-write \
    --only mempolicy/split-and-merge \
    --out "$out/differential-short.cpio"
