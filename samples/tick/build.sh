#!/bin/bash
. "$(dirname "$0")/../lib/common.sh"
sources=("$samples/tick/tick.c" "$samples/tick/build.sh" "$samples/lib/crt1.c")
fresh tick "$OUT/tick.wasm" "${sources[@]}" && exit
say "building tick"
command -v clang-22 >/dev/null && [ -e /usr/lib/wasm32-wasi/libc.a ] ||
    fail "no C compiler for wasm. Run: apt-get install -y --no-install-recommends clang-22 lld-22 libclang-rt-22-dev-wasm32 wasi-libc" 3
clang-22 --target=wasm32-wasi -Wno-deprecated -Wall -Wextra -Os -s -nostartfiles -o "$OUT/tick.wasm" \
    "$samples/tick/tick.c" "$samples/lib/crt1.c"
made tick "${sources[@]}"
