//! Objects as the typed clients of Kubernetes send them: the `k8s\0` envelope around protobuf, read and written through
//! the type table.

use tandem_api::{ApiError, Object};

use crate::{Registry, Schema};

/// The bytes that every protobuf body starts with.
pub const MAGIC: &[u8; 4] = b"k8s\0";

/// Reads a body: the envelope (`runtime.Unknown`) and the object of the kind that it names.
pub fn decode(schema: &Schema, registry: &Registry, bytes: &[u8]) -> Result<Object, ApiError> {
    let _ = (schema, registry, bytes);
    Err(ApiError::bad_request("protobuf bodies are not read yet"))
}
