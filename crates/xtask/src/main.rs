//! Everyday work.
fn main() {}
