#!/usr/bin/env bash
# Tests on the beds named: host, kvm, qemu, nested. Every bed runs, whatever happened on the one before; the
# closing lines say what ran, what failed, and what this machine could not run and why. Exit codes: 0 all
# passed, 1 something failed, 2 nothing could run. LENGTH (short, normal, long) says which cases run; beds kvm and qemu run at least the
# normal ones.
set -uo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

readonly LOGS=$TARGET/test
readonly MEMVISOR=$TARGET/release/memvisor
# What `memvisor test` exits with when no case could run (vmm/src/suite/mod.rs).
readonly NOTHING_RAN=8

mkdir -p "$LOGS"
passed=0 failed=0 skipped=0
failures=() unable=() lines=()

# The number before a word in the last line of a file that matches: `count FILE PATTERN WORD`.
count() {
    local n
    n=$(grep -E "$2" "$1" | tail -n 1 | grep -oE "[0-9]+ $3" | head -n 1 | cut -d ' ' -f 1)
    echo "${n:-0}"
}

tally() { # BED PASSED FAILED SKIPPED
    passed=$((passed + $2)) failed=$((failed + $3)) skipped=$((skipped + $4))
    lines+=("$1: $2 passed, $3 failed, $4 skipped")
}

host() {
    local log=$LOGS/host.log doc=$LOGS/doc.log crates=(--workspace --exclude memvisor-kernel --exclude memvisor-user)
    if cargo nextest --version >/dev/null 2>&1; then
        NEXTEST_HIDE_PROGRESS_BAR=1 cargo nextest run "${crates[@]}" --no-fail-fast --status-level all \
            --final-status-level fail 2>&1 | tee "$log"
        local code=${PIPESTATUS[0]}
        tally host "$(count "$log" 'Summary \[' passed)" "$(count "$log" 'Summary \[' failed)" \
            "$(count "$log" 'Summary \[' skipped)"
        mapfile -t -O ${#failures[@]} failures < <(sed -n 's/^ *\(FAIL\|TIMEOUT\|SIGABRT\|SIGSEGV\) \[[^]]*\] */host: /p' "$log" | sort -u)
        [ "$code" = 0 ] || failures+=("host: cargo nextest run exited with $code, see $log")
    else
        cargo test "${crates[@]}" --no-fail-fast --lib --bins --tests 2>&1 | tee "$log"
        sum_cargo host "$log" "${PIPESTATUS[0]}"
    fi
    cargo test "${crates[@]}" --doc --no-fail-fast 2>&1 | tee "$doc"
    sum_cargo doctests "$doc" "${PIPESTATUS[0]}"
}

sum_cargo() { # NAME LOG CODE
    local sums
    sums=$(awk '/^test result:/ { for (i = 2; i <= NF; i++) { if ($i ~ /^passed/) p += $(i-1); if ($i ~ /^failed/) f += $(i-1);
        if ($i ~ /^ignored/) s += $(i-1) } } END { print p + 0, f + 0, s + 0 }' "$2")
    # shellcheck disable=SC2086 # three numbers
    tally "$1" $sums
    mapfile -t -O ${#failures[@]} failures < <(sed -n "s/^test \(.*\) \.\.\. FAILED$/$1: \1/p" "$2")
    [ "$3" = 0 ] || failures+=("$1: cargo test exited with $3, see $2")
}

suites() { # BED
    local log=$LOGS/$1.log length=normal
    [ "${LENGTH:-}" != long ] || length=long
    if ! make --no-print-directory build; then
        failures+=("$1: the build failed")
        return
    fi
    # Without them their cases are skipped, with the reason.
    local said
    said=$(make --no-print-directory initrds 2>&1) || unable+=("bed $1: cases that boot an initrd: ${said##*$'\n'}")
    [ -z "$said" ] || echo "$said"
    # Two guests at a time: most have one busy CPU.
    local jobs=2
    [ "$(nproc)" -ge 2 ] && [[ " ${ARGS:-} " != *" --jobs"* ]] || jobs=
    # shellcheck disable=SC2086 # ARGS is a list of arguments
    "$MEMVISOR" test --bed "$1" ${jobs:+--jobs $jobs} --length "$length" --keep "$LOGS/$1" --report "junit=$LOGS/$1.xml" ${ARGS:-} 2>&1 | tee "$log"
    judge_suites "$1" "$log" "${PIPESTATUS[0]}"
}

nested() {
    local log=$LOGS/nested.log names
    # Names may hold a '*', which is not for the shell.
    read -ra names <<<"${CASE:-}"
    TEST_ARGS=${ARGS:-} scripts/nested/run.sh "${names[@]}" 2>&1 | tee "$log"
    judge_suites nested "$log" "${PIPESTATUS[0]}"
}

judge_suites() { # BED LOG CODE
    local log=$2 code=$3
    tally "$1" "$(count "$log" '^suites: ' passed)" "$(count "$log" '^suites: ' failed)" \
        "$(count "$log" '^suites: ' skipped)"
    mapfile -t -O ${#failures[@]} failures < <(grep -E '^FAIL ' "$log" | sed 's/^FAIL */'"$1"': /')
    mapfile -t -O ${#unable[@]} unable < <(sed -n "s/^NOT RUN: /bed $1: /p" "$log")
    case $code in
    0) ;;
    "$NOTHING_RAN") ;; # the reasons are in the list
    1) ;; # the failures are in the list
    *) failures+=("$1: memvisor test exited with $code") ;;
    esac
}

[ "$*" = host ] && scripts/setup.sh build || scripts/setup.sh all || exit 1
for bed in "$@"; do
    echo "== bed $bed"
    case $bed in
    host) host ;;
    kvm | qemu) suites "$bed" ;;
    nested) nested ;;
    *) die "test.sh: no bed '$bed'" ;;
    esac
done

echo "== result"
for line in "${lines[@]}"; do echo "$line"; done
for reason in "${unable[@]}"; do echo "COULD NOT RUN: $reason"; done
for failure in "${failures[@]}"; do echo "FAILED: $failure"; done
echo "test: $passed passed, $failed failed, $skipped skipped"
[ ${#failures[@]} = 0 ] && [ "$failed" = 0 ] || exit 1
[ "$passed" -gt 0 ] || exit 2
