//! Label and field selectors: Kubernetes' two small query languages.

mod field;
mod label;

pub use field::FieldSelector;
pub use label::LabelSelector;

#[cfg(test)]
mod tests;
