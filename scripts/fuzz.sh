#!/usr/bin/env bash
# Runs every fuzz target for some seconds, one after the other: `scripts/fuzz.sh SECONDS [TARGET...]`.
# Starts from fuzz/corpus, keeps what it learns in target/fuzz, and leaves the input of a finding there;
# the closing line says how many inputs ran and how many findings there were. Exit code 1 if any.
set -uo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

seconds=${1:-60}
shift || true
[[ $seconds =~ ^[1-9][0-9]*$ ]] || die "fuzz.sh: '$seconds' is not a number of seconds: make fuzz SECONDS=60"
readonly WORK=$TARGET/fuzz
# A target that takes longer on one input, or this much memory, has a finding.
readonly INPUT_SECONDS=20 MEMORY_MIB=2048

# Nothing here boots the bundled kernel.
unset MEMVISOR_GUEST

cargo +nightly --version >/dev/null 2>&1 || die "fuzzing needs a nightly toolchain: rustup toolchain install nightly"
export PATH=$TARGET/tools/bin:$PATH
if ! cargo fuzz --version >/dev/null 2>&1; then
    say "cargo install cargo-fuzz"
    cargo +nightly install --quiet --locked --root "$TARGET/tools" cargo-fuzz || die "cargo-fuzz cannot be installed"
fi

targets=("$@")
[ ${#targets[@]} != 0 ] || mapfile -t targets < <(sed -n '/^\[\[bin\]\]/{n;s/^name = "\(.*\)"/\1/p}' fuzz/Cargo.toml)
mkdir -p "$WORK"
echo "fuzz: building ${#targets[@]} targets"
cargo +nightly fuzz build --target-dir "$WORK/build" >"$WORK/build.log" 2>&1 || {
    tail -n 20 "$WORK/build.log" >&2
    die "the fuzz targets do not build: $WORK/build.log"
}

total=0 findings=()
for target in "${targets[@]}"; do
    corpus=$WORK/corpus/$target artifacts=$WORK/artifacts/$target log=$WORK/$target.log
    program=$(find "$WORK/build" -path "*/release/$target" -type f -perm -u+x | head -n 1)
    [ -n "$program" ] || die "no fuzz target '$target'"
    mkdir -p "$corpus" "$artifacts"
    echo "fuzz: $target for $seconds s"
    # Units that reach new code go to the first folder: the committed corpus stays as it is.
    "$program" "$corpus" "fuzz/corpus/$target" "-artifact_prefix=$artifacts/" "-max_total_time=$seconds" \
        "-timeout=$INPUT_SECONDS" "-rss_limit_mb=$MEMORY_MIB" -max_len=65536 -print_final_stats=1 >"$log" 2>&1
    code=$?
    # A leak that is found at the end makes the figures appear twice.
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -n 1)
    cover=$(grep -oE 'cov: [0-9]+' "$log" | tail -n 1)
    total=$((total + ${runs:-0}))
    echo "fuzz: $target: ${runs:-0} inputs, ${cover:-cov: 0} edges, exit code $code"
    if [ $code != 0 ]; then
        grep -m 3 -E 'panicked at|ERROR: |SUMMARY: ' "$log" | sed 's/^/    /'
        input=$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)
        findings+=("$target: ${input:-no input}, see $log")
    fi
done

for finding in "${findings[@]}"; do echo "FINDING: $finding"; done
echo "fuzz: ${#targets[@]} targets, $seconds s each, $total inputs, ${#findings[@]} findings"
[ ${#findings[@]} = 0 ]
