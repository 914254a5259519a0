//! Building blocks of semantic validation: causes in Kubernetes' words, with field paths.

pub mod labels;
pub mod metadata;
