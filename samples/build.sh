#!/bin/bash
# Builds the samples, or those that are named, into target/samples. What is up to date is left alone.
#   samples/build.sh [NAME...]        OUT=FOLDER to build elsewhere
set -euo pipefail
samples=$(cd "$(dirname "$0")" && pwd)
if [ $# -eq 0 ]; then
    set -- hello-http hello-http3 faults tick busybox nginx mixed
fi
# Two builds at a time would trip over each other's files.
mkdir -p "${OUT:=$samples/../target/samples}"
exec 9> "$OUT/.lock"
flock 9
for name in "$@"; do
    if [ ! -x "$samples/$name/build.sh" ]; then
        echo "there is no sample named $name" >&2
        exit 2
    fi
    "$samples/$name/build.sh"
done
