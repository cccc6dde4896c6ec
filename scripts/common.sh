# Shared by the scripts here; sourced with the repository's root as working directory.

# Where cargo builds: absolute, so that children may change directory.
TARGET=$(realpath -m "${CARGO_TARGET_DIR:-target}")
export TARGET

have() { command -v "$1" >/dev/null 2>&1; }
say() { echo "setup: $*" >&2; }
die() {
    echo "error: $*" >&2
    exit 1
}
