#!/bin/bash
# Two versions, which differ in what their page says.
. "$(dirname "$0")/../lib/common.sh"
. "$samples/lib/rust.sh"
for version in 1 2; do
    build_guest hello-http "$OUT/hello-http-$version.wasm" HELLO_VERSION=$version
done
