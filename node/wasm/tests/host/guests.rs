//! Guests assembled from text: no compiler is needed.

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

const WIT: &str = include_str!("guests.wit");

fn component(world: &str, text: &str) -> Vec<u8> {
    let mut resolve = Resolve::default();
    let package = resolve.push_str("guests.wit", WIT).unwrap();
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    let mut module = wat::parse_str(text).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default().module(&module).unwrap().validate(true).encode().unwrap()
}

/// See `server.wat`.
pub(crate) fn server() -> Vec<u8> {
    component("server", include_str!("server.wat"))
}

/// An HTTP component that imports what nobody provides.
pub(crate) fn strange() -> Vec<u8> {
    component(
        "strange",
        r#"(module
            (import "acme:db/store@1.0.0" "get" (func $get (result i32)))
            (memory (export "memory") 1)
            (func (export "wasi:http/incoming-handler@0.2.0#handle") (param i32 i32) (drop (call $get))))"#,
    )
}

/// See `command.wat`.
pub(crate) fn command() -> Vec<u8> {
    wat::parse_str(include_str!("command.wat")).unwrap()
}

/// The same command as a component of WASI 0.2, through the adapter.
pub(crate) fn command_component() -> Vec<u8> {
    ComponentEncoder::default()
        .module(&command())
        .unwrap()
        .adapter(
            "wasi_snapshot_preview1",
            wasi_preview1_component_adapter_provider::WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
        )
        .unwrap()
        .validate(true)
        .encode()
        .unwrap()
}

/// A command that listens on an address with sockets of its own, and fails if it may not.
pub(crate) fn listener([a, b, c, d]: [u8; 4], port: u16) -> Vec<u8> {
    let text = include_str!("listener.wat");
    let address = format!("(i32.const {port}) (i32.const {a}) (i32.const {b}) (i32.const {c}) (i32.const {d})");
    component("listener", &text.replace("ADDRESS", &address))
}

/// A command that looks up `web` and succeeds if the first address is 10.200.0.2.
pub(crate) fn looker() -> Vec<u8> {
    component(
        "looker",
        r#"(module
            (import "wasi:sockets/instance-network@0.2.0" "instance-network" (func $network (result i32)))
            (import "wasi:sockets/ip-name-lookup@0.2.0" "resolve-addresses" (func $look (param i32 i32 i32 i32)))
            (import "wasi:sockets/ip-name-lookup@0.2.0" "[method]resolve-address-stream.subscribe"
                (func $subscribe (param i32) (result i32)))
            (import "wasi:sockets/ip-name-lookup@0.2.0" "[method]resolve-address-stream.resolve-next-address"
                (func $next (param i32 i32)))
            (import "wasi:io/poll@0.2.0" "[method]pollable.block" (func $block (param i32)))
            (memory (export "memory") 1)
            (data (i32.const 16) "web")
            (func (export "wasi:cli/run@0.2.0#run") (result i32)
                (local $stream i32)
                (call $look (call $network) (i32.const 16) (i32.const 3) (i32.const 64))
                (if (i32.load8_u (i32.const 64)) (then (return (i32.const 1))))
                (local.set $stream (i32.load (i32.const 68)))
                (call $block (call $subscribe (local.get $stream)))
                (call $next (local.get $stream) (i32.const 64))
                ;; ok, some, IPv4, then the address
                (i32.load8_u (i32.const 64))
                (i32.ne (i32.load8_u (i32.const 66)) (i32.const 1))
                i32.or
                (i32.load8_u (i32.const 68))
                i32.or
                (i32.ne (i32.load (i32.const 70)) (i32.const 0x0200c80a))
                i32.or))"#,
    )
}
