//! The receiver, for trying out.
fn main() {}
