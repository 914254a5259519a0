//! The four patch types, each a pure function of what is there and what is asked.

pub(crate) mod apply;
mod json;
mod strategic;

pub(crate) use apply::drop_nulls;
pub(crate) use json::{JsonFailure, apply_json, json_patch, merge_patch};
pub(crate) use strategic::{go_value, strategic_merge};

#[cfg(test)]
mod tests;
