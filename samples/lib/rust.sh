# Builds Rust guests as components: with the rustup target where it is installed, else with Debian's packages.
# shellcheck shell=bash
target=wasm32-wasip2

has_rustup_target() {
    local folder
    folder=$(rustc --print target-libdir --target "$target" 2>/dev/null) && ls "$folder"/libstd-*.rlib >/dev/null 2>&1
}

has_debian_packages() {
    [ -x /usr/bin/rustc ] && [ -d /usr/lib/rustlib/src/rust/library ] && [ -e /usr/lib/wasm32-wasi/libc.a ] &&
        [ -x /usr/bin/wasm-ld-22 ] && [ -x /usr/bin/clang-22 ]
}

# Debian does not package what rustup puts beside the standard library: a sysroot of links brings the parts together.
debian_sysroot() {
    local sysroot=$work/sysroot host rustlib=/usr/lib/rustlib
    host=$(/usr/bin/rustc -vV | sed -n 's/^host: //p')
    local lib=$sysroot/lib/rustlib
    local contained=$lib/$target/lib/self-contained
    mkdir -p "$lib/$host/bin" "$contained"
    ln -sfn "$rustlib/src" "$lib/src"
    ln -sfn "$rustlib/$host/lib" "$lib/$host/lib"
    ln -sfn "$rustlib/$host/bin/wasm-component-ld" "$lib/$host/bin/wasm-component-ld"
    ln -sfn /usr/bin/wasm-ld-22 "$lib/$host/bin/wasm-ld"
    ln -sfn /usr/lib/wasm32-wasi/libc.a "$contained/libc.a"
    ln -sfn /usr/lib/wasm32-wasi/crt1-reactor.o "$contained/crt1-reactor.o"
    clang-22 --target=wasm32-wasip1 -ffreestanding -O2 -c "$samples/lib/crt1.c" -o "$contained/crt1-command.o"
    printf '#!/bin/sh\nexec /usr/bin/rustc --sysroot "%s" "$@"\n' "$sysroot" > "$sysroot/rustc"
    chmod +x "$sysroot/rustc"
    printf '%s\n' "$sysroot/rustc"
}

# build_guest PACKAGE RESULT [VARIABLE=VALUE...]: builds one package of the workspace and puts the component at RESULT.
build_guest() {
    local package=$1 result=$2 name rustc
    shift 2
    name=$(basename "$result" .wasm)
    local sources=("$samples/$package/src" "$samples/$package/Cargo.toml" "$samples/Cargo.toml" "$samples/Cargo.lock" "$samples/lib/rust.sh")
    fresh "$name" "$result" "${sources[@]}" "$@" && return
    say "building $name"
    local arguments=(build --quiet --release --locked --manifest-path "$samples/Cargo.toml" --target-dir "$work/cargo" --target "$target" --package "$package")
    # The flags of the product's own build are for another processor, and would build the standard library twice.
    if has_rustup_target; then
        env "$@" CARGO_ENCODED_RUSTFLAGS= cargo "${arguments[@]}"
    elif has_debian_packages; then
        rustc=$(debian_sysroot)
        env "$@" RUSTC="$rustc" RUSTC_BOOTSTRAP=1 CARGO_ENCODED_RUSTFLAGS= cargo "${arguments[@]}" -Zbuild-std=std,panic_abort
    else
        fail "no toolchain for $target. Run one of:
    rustup target add $target
    apt-get install -y --no-install-recommends rustc-web rust-web-src rust-web-llvm lld-22 clang-22 libclang-rt-22-dev-wasm32 wasi-libc" 3
    fi
    cp "$work/cargo/$target/release/${package//-/_}.wasm" "$result"
    made "$name" "${sources[@]}" "$@"
}
