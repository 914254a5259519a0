//! End-to-end tests: the real binary, real containerd, real wasmtime, real kubectl.
