#!/bin/bash
. "$(dirname "$0")/../lib/common.sh"
. "$samples/lib/rust.sh"
build_guest hello-http3 "$OUT/hello-http3.wasm"
