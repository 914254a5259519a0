# Shared by the build scripts: where things go, and whether they have to be made again.
# shellcheck shell=bash
set -euo pipefail
# Modes end up in images.
umask 022
samples=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
OUT=${OUT:-$samples/../target/samples}
mkdir -p "$OUT/.work"
OUT=$(cd "$OUT" && pwd)
work=$OUT/.work

say() { printf '%s\n' "$*" >&2; }
fail() { say "$1"; exit "${2:-1}"; }

# fresh NAME RESULT INPUT...: whether RESULT was made from these inputs by an earlier run.
fresh() {
    local name=$1 result=$2 stamp
    shift 2
    stamp=$(inputs "$@")
    [ -e "$result" ] && [ "$(cat "$work/$name.stamp" 2>/dev/null)" = "$stamp" ]
}

# made NAME INPUT...: remembers what the result was made from.
made() {
    local name=$1
    shift
    inputs "$@" > "$work/$name.stamp"
}

# The hash of files, folders, and plain words.
inputs() {
    local item
    for item in "$@"; do
        if [ -e "$item" ]; then
            find "$item" -type f -print0 | LC_ALL=C sort -z | xargs -0 -r sha256sum | sed 's/  .*//'
        else
            printf '%s\n' "$item"
        fi
    done | sha256sum
}
