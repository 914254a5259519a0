#!/bin/bash
# The component; the container beside it is the nginx sample.
. "$(dirname "$0")/../lib/common.sh"
. "$samples/lib/rust.sh"
build_guest mixed "$OUT/mixed.wasm"
"$samples/nginx/build.sh"
