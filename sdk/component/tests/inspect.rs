//! Guests are assembled from text, so that each test shows all of what it inspects.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use expect_test::{Expect, expect};
use tandem_component::{Component, Error, Inspection, magic};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

fn inspect(text: &str) -> Inspection {
    Component::inspect(&wat::parse_str(text).expect("text")).expect("guest")
}

fn check(text: &str, expected: &Expect) {
    expected.assert_eq(&inspect(text).to_string());
}

/// The component that a core module makes in one of the worlds.
fn of_world(world: &str, module: &str) -> Vec<u8> {
    let mut resolve = Resolve::default();
    let package = resolve.push_str("test.wit", WORLDS).expect("wit");
    let world = resolve.select_world(&[package], Some(world)).expect("world");
    let mut module = wat::parse_str(module).expect("text");
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).expect("metadata");
    ComponentEncoder::default().module(&module).expect("module").validate(true).encode().expect("component")
}

const WORLDS: &str = r#"
package wasi:http@0.2.6;
interface types {
  resource incoming-request;
  resource response-outparam;
}
interface incoming-handler {
  use types.{incoming-request, response-outparam};
  handle: func(request: incoming-request, out: response-outparam);
}
interface outgoing-handler {
  use types.{incoming-request};
  handle: func(request: incoming-request);
}
interface fictional { lend: func(); }
interface words { record word { text: string } type many = list<word>; }
world proxy { import outgoing-handler; export incoming-handler; }
world greedy { import fictional; export incoming-handler; }
world typed { use words.{many}; export count: func(all: many) -> u32; }
"#;

#[test]
fn worlds_are_found_from_exports() {
    let proxy = Component::inspect(&of_world(
        "proxy",
        r#"(module
            (import "wasi:http/outgoing-handler@0.2.6" "handle" (func (param i32)))
            (memory (export "memory") 1)
            (func (export "wasi:http/incoming-handler@0.2.6#handle") (param i32 i32)))"#,
    ))
    .expect("proxy");
    let text = proxy.to_string();
    let without_size: Vec<&str> = text.lines().filter(|line| !line.starts_with("Size")).collect();
    expect![[r#"
        Kind:     component
        World:    HTTP handler (WASI 0.2)
        Exports:  wasi:http/incoming-handler@0.2.6
        Imports:  wasi:http/outgoing-handler@0.2.6
                  wasi:http/types@0.2.6
        Grants:   outgoing HTTP requests"#]]
    .assert_eq(&without_size.join("\n"));
}

#[test]
fn what_nobody_provides_is_named() {
    let greedy = Component::inspect(&of_world(
        "greedy",
        r#"(module
            (import "wasi:http/fictional@0.2.6" "lend" (func))
            (memory (export "memory") 1)
            (func (export "wasi:http/incoming-handler@0.2.6#handle") (param i32 i32)))"#,
    ))
    .expect("greedy");
    let refused: Vec<String> = greedy.refused().iter().map(ToString::to_string).collect();
    assert_eq!(refused, ["wasi:http/fictional@0.2.6"]);
}

#[test]
fn an_interface_of_types_needs_nobody() {
    let typed = Component::inspect(&of_world(
        "typed",
        r#"(module
            (memory (export "memory") 1)
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) unreachable)
            (func (export "count") (param i32 i32) (result i32) unreachable))"#,
    ))
    .expect("typed");
    assert_eq!(typed.imports, []);
    assert_eq!(typed.types.iter().map(ToString::to_string).collect::<Vec<_>>(), ["many", "wasi:http/words@0.2.6"]);
}

#[test]
fn releases_have_tracks() {
    let component = |export: &str, import: &str| {
        inspect(&format!(
            r#"(component
                (import "{import}" (instance (export "f" (func))))
                (core module)
                (instance $run)
                (export "{export}" (instance $run)))"#
        ))
    };
    let newer = component("wasi:cli/run@0.2.99", "wasi:io/streams@0.2.99");
    assert_eq!((newer.world.to_string().as_str(), newer.refused().len()), ("command (WASI 0.2)", 0));
    let third = component("wasi:cli/run@0.3.2", "wasi:http/client@0.3.2");
    assert_eq!((third.world.to_string().as_str(), third.refused().len()), ("command (WASI 0.3)", 0));
    let handler = component("wasi:http/handler@0.3.0", "wasi:cli/environment@0.3.0");
    assert_eq!(handler.world.to_string(), "HTTP handler (WASI 0.3)");
    let draft = component("wasi:cli/run@0.3.0-rc-2026-01-01", "wasi:io/streams@0.2.0-rc-2023-11-10");
    assert!(draft.world.to_string().starts_with("library"));
    assert_eq!(draft.refused().len(), 1);
    let wrong_track = component("wasi:cli/run@0.2.0", "wasi:http/client@0.2.0");
    assert_eq!(wrong_track.refused().len(), 1);
}

#[test]
fn core_modules() {
    check(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "sock_open" (func (param i32 i32) (result i32)))
            (import "env" "abort" (func))
            (memory (export "memory") 1)
            (func (export "_start")))"#,
        &expect![[r#"
            Kind:     core module
            World:    command (WASI 0.1)
            Size:     148 bytes
            Exports:  none
            Imports:  env#abort
                      wasi_snapshot_preview1
                      wasi_snapshot_preview1#sock_open
            Grants:   none
            Refused:  env#abort
                      wasi_snapshot_preview1#sock_open
                      no pod can run it, because nobody provides what is refused
        "#]],
    );
    check(
        "(module)",
        &expect![[r#"
            Kind:     core module
            World:    library (exports nothing that a pod can start)
            Size:     8 bytes
            Exports:  none
            Imports:  none
            Grants:   none
        "#]],
    );
}

#[test]
fn sockets_are_a_grant() {
    check(
        r#"(component
            (import "wasi:sockets/tcp@0.2.0" (instance (export "f" (func))))
            (import "log" (func))
            (core module))"#,
        &expect![[r#"
            Kind:     component
            World:    library (exports nothing that a pod can start)
            Size:     80 bytes
            Exports:  none
            Imports:  log
                      wasi:sockets/tcp@0.2.0
            Grants:   TCP and UDP sockets
            Refused:  log
                      no pod can run it, because nobody provides what is refused
        "#]],
    );
}

#[test]
fn what_is_not_wasm_says_what_it_looks_like() {
    let mut precompiled = b"\x7fELF\x02\x01\x01\xc8".to_vec();
    precompiled.resize(64, 0);
    let truncated = wat::parse_str("(module (func (export \"f\")))").expect("text");
    let cases: &[&[u8]] = &[
        b"",
        b"\x7fELF\x02\x01\x01\x00",
        &precompiled,
        b"(module)",
        b";; note\n(component)",
        b"#!/bin/sh\n",
        b"{\"schemaVersion\": 2}",
        b"hello",
        "gr\u{fc}\u{df}e".as_bytes(),
        b"\x1f\x8b\x08\x00",
        b"\x00\x01\x02\x03",
        b"\0asm",
        b"\0asm\x02\0\0\0",
        &truncated[..truncated.len() - 3],
        &wat::parse_str("(module (func (result i32)))").unwrap(),
    ];
    let said: Vec<String> =
        cases.iter().map(|case| Component::inspect(case).expect_err("not wasm").to_string()).collect();
    expect![[r#"
        not a WebAssembly component or module: the file is empty
        not a WebAssembly component or module: it is an executable for a processor (ELF): build it for a wasm target
        not a WebAssembly component or module: it is a precompiled .cwasm file, which is never accepted from outside: give the .wasm it was made from
        not a WebAssembly component or module: it is WebAssembly text (.wat): assemble it with `wasm-tools parse` first
        not a WebAssembly component or module: it is WebAssembly text (.wat): assemble it with `wasm-tools parse` first
        not a WebAssembly component or module: it is a script
        not a WebAssembly component or module: it is JSON
        not a WebAssembly component or module: it is text
        not a WebAssembly component or module: it is text
        not a WebAssembly component or module: it is an archive (gzip): give the .wasm file that is in it
        not a WebAssembly component or module: it does not start with the WebAssembly magic number
        broken WebAssembly at byte 0x4: the file ends inside its header
        not a WebAssembly binary that this version reads: layer 0, version 2
        broken WebAssembly at byte 0x1c: unexpected end-of-file
        broken WebAssembly at byte 0x18: type mismatch: expected i32 but nothing on stack"#]]
    .assert_eq(&said.join("\n"));
}

#[test]
fn a_wit_package_holds_no_code() {
    let mut resolve = Resolve::default();
    let package = resolve.push_str("test.wit", WORLDS).expect("wit");
    let bytes = wit_component::encode(&resolve, package).expect("package");
    assert!(matches!(Component::inspect(&bytes), Err(Error::WitPackage)));
    assert!(magic(&bytes).is_ok());
}

#[test]
fn an_adapted_module_is_a_command() {
    let module = wat::parse_str(
        r#"(module
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (memory (export "memory") 1)
            (func (export "_start") i32.const 0 call $exit))"#,
    )
    .expect("text");
    let adapter = wasi_preview1_component_adapter_provider::WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER;
    let mut encoder = ComponentEncoder::default().module(&module).expect("module");
    encoder = encoder.adapter("wasi_snapshot_preview1", adapter).expect("adapter");
    let component = Component::inspect(&encoder.encode().expect("component")).expect("guest");
    assert_eq!(component.world.to_string(), "command (WASI 0.2)");
    assert_eq!(component.refused(), []);
}
