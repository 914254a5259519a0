//! The container runtime interface (CRI v1): generated types, and [`tandem_runtime::Runtime`] over any socket that
//! speaks it.

/// The types, client and server generated from `proto/runtime.v1.proto`.
#[allow(clippy::all, clippy::allow_attributes_without_reason, unreachable_pub, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}
