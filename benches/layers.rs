//! One benchmark for each layer.
fn main() {}
