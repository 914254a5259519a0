//! Building blocks of semantic validation: causes in Kubernetes' words, with field paths.

pub(crate) mod batch;
pub(crate) mod config;
pub(crate) mod network;
pub(crate) mod pod;
pub(crate) mod policy;
pub(crate) mod rbac;
pub(crate) mod service;
pub(crate) mod storage;
pub(crate) mod workloads;
pub mod labels;
pub mod metadata;
