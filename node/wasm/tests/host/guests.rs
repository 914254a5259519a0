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
pub fn server() -> Vec<u8> {
    component("server", include_str!("server.wat"))
}

/// An HTTP component that imports what nobody provides.
pub fn strange() -> Vec<u8> {
    component(
        "strange",
        r#"(module
            (import "acme:db/store@1.0.0" "get" (func $get (result i32)))
            (memory (export "memory") 1)
            (func (export "wasi:http/incoming-handler@0.2.0#handle") (param i32 i32) (drop (call $get))))"#,
    )
}

/// See `command.wat`.
pub fn command() -> Vec<u8> {
    wat::parse_str(include_str!("command.wat")).unwrap()
}

/// The same command as a component of WASI 0.2, through the adapter.
pub fn command_component() -> Vec<u8> {
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
pub fn listener([a, b, c, d]: [u8; 4], port: u16) -> Vec<u8> {
    let text = include_str!("listener.wat");
    let address = format!("(i32.const {port}) (i32.const {a}) (i32.const {b}) (i32.const {c}) (i32.const {d})");
    component("listener", &text.replace("ADDRESS", &address))
}
