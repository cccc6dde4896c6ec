# Sourced by scripts that check: `is WHAT TEST...`, and how many of these failed.
failed=0
is() { # WHAT TEST...
    what=$1
    shift
    if [ "$@" ]; then
        echo "ok: $what"
    else
        echo "FAILED: $what: $*"
        failed=$((failed + 1))
    fi
}
