#!/bin/bash
. "$(dirname "$0")/../lib/common.sh"
. "$samples/lib/rust.sh"
build_guest faults "$OUT/faults.wasm"
