#!/usr/bin/env bash
# Breaks the guest's crates on purpose, one small change at a time, and says which changes no test of that crate
# notices: `scripts/mutants.sh [FILE...]`. Without files: everything in the allocators. A survivor is a test that is
# missing, or a change that does not matter; exit code 0 either way, because the list is the result.
set -uo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

readonly ALLOCATORS=(mm-page-alloc mm-slab)
readonly OUT=$TARGET/mutants

export PATH=$TARGET/tools/bin:$PATH
if ! cargo mutants --version >/dev/null 2>&1; then
    say "cargo install cargo-mutants"
    cargo install --quiet --locked --root "$TARGET/tools" cargo-mutants || die "cargo-mutants cannot be installed"
fi

# The crate that FILE is in.
crate_of() {
    local folder
    folder=$(dirname "$1")
    while [ "$folder" != . ] && [ ! -f "$folder/Cargo.toml" ]; do folder=$(dirname "$folder"); done
    [ "$folder" != . ] || die "mutants.sh: '$1' is in no crate"
    sed -n 's/^name = "\(.*\)"/\1/p' "$folder/Cargo.toml" | head -n 1
}

args=() crates=("${ALLOCATORS[@]}")
[ $# = 0 ] || crates=()
for file in "$@"; do
    [ -f "$file" ] || die "mutants.sh: no file '$file'"
    args+=(-f "$file")
    crates+=("$(crate_of "$file")")
done
while read -r crate; do args+=(-p "$crate"); done < <(printf '%s\n' "${crates[@]}" | sort -u)
mkdir -p "$OUT"
# Nothing here needs the bundled kernel. A test run of these crates takes seconds, the longest half a minute: a mutant that hangs is caught soon.
unset MEMVISOR_GUEST CARGO_TARGET_DIR
cargo mutants --output "$OUT" --jobs "${JOBS:-2}" --timeout 120 --no-shuffle --colors never "${args[@]}"
code=$?
# 0: all caught; 2: some survived; 3: some timed out, which counts as caught.
case $code in 0 | 2 | 3) ;; *) die "cargo mutants exited with $code: see $OUT/mutants.out/log" ;; esac

survivors() { cat "$OUT/mutants.out/missed.txt" 2>/dev/null; }
echo "mutants: caught $(wc -l <"$OUT/mutants.out/caught.txt"), survived $(survivors | wc -l)," \
    "timed out $(wc -l <"$OUT/mutants.out/timeout.txt"), did not build $(wc -l <"$OUT/mutants.out/unviable.txt")"
survivors | sed 's/^/SURVIVED: /'
