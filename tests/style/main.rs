//! The house's rules, as tests: sizes, dependency directions, what may be used where.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says by a panic what is wrong")]

mod dependencies;
mod sources;
