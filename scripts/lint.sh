#!/usr/bin/env bash
# Formatting and clippy of every crate; all steps run, the exit code says whether one failed.
set -uo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

failed=()
step() {
    local name=$1
    shift
    echo "lint: $name"
    "$@" || failed+=("$name")
}

step "formatting" cargo fmt --all --check
step "formatting of the fuzz programs" rustfmt --edition 2024 --check fuzz/fuzz_targets/*.rs
step "clippy, host crates" cargo clippy --workspace --exclude memvisor-kernel --exclude memvisor-user \
    --all-targets -- -D warnings
# A workspace of its own, which nothing else in CI builds.
step "formatting of the benchmarks" cargo fmt --manifest-path bench/Cargo.toml --check
step "clippy, benchmarks" cargo clippy --manifest-path bench/Cargo.toml --target-dir "$TARGET/bench" --all-targets -- -D warnings
step "clippy, guest crates" scripts/guest.sh clippy

for name in "${failed[@]}"; do echo "FAILED: lint: $name"; done
[ ${#failed[@]} = 0 ] && echo "lint: clean"
