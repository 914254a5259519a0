//! The house's rules, as tests: sizes, dependency directions, what may be used where.

mod dependencies;
mod sources;
