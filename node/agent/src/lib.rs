//! The kubelet.
mod backoff;
mod life;
mod observed;
mod plan;
mod pod;
mod quantity;
mod resources;
mod status;
#[cfg(test)]
mod testing;
