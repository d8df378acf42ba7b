//! A receiver to try things out with.

fn main() {}
