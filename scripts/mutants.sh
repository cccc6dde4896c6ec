#!/usr/bin/env bash
# Breaks the memory manager's crates on purpose, one small change at a time, and says which changes no test
# notices: `scripts/mutants.sh [FILE...]`. Without files: everything in the crates named below. A survivor is a
# test that is missing, or a change that does not matter; exit code 0 either way, because the list is the result.
set -uo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

readonly CRATES=(mm-page-alloc mm-slab)
readonly OUT=$TARGET/mutants

export PATH=$TARGET/tools/bin:$PATH
if ! cargo mutants --version >/dev/null 2>&1; then
    say "cargo install cargo-mutants"
    cargo install --quiet --locked --root "$TARGET/tools" cargo-mutants || die "cargo-mutants cannot be installed"
fi

args=()
for crate in "${CRATES[@]}"; do
    cargo pkgid -p "$crate" >/dev/null 2>&1 && args+=(-p "$crate")
done
for file in "$@"; do
    [ -f "$file" ] || die "mutants.sh: no file '$file'"
    args+=(-f "$file")
done
mkdir -p "$OUT"
# Nothing here needs the bundled kernel. A test run of these crates takes seconds: a mutant that hangs is caught soon.
unset MEMVISOR_GUEST CARGO_TARGET_DIR
cargo mutants --output "$OUT" --jobs "${JOBS:-2}" --timeout 60 --no-shuffle --colors never "${args[@]}"
code=$?
# 0: all caught; 2: some survived; 3: some timed out, which counts as caught.
case $code in 0 | 2 | 3) ;; *) die "cargo mutants exited with $code: see $OUT/mutants.out/log" ;; esac

survivors() { cat "$OUT/mutants.out/missed.txt" 2>/dev/null; }
echo "mutants: caught $(wc -l <"$OUT/mutants.out/caught.txt"), survived $(survivors | wc -l)," \
    "timed out $(wc -l <"$OUT/mutants.out/timeout.txt"), did not build $(wc -l <"$OUT/mutants.out/unviable.txt")"
survivors | sed 's/^/SURVIVED: /'
