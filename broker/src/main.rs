//! The `mqtt-broker` binary.

mod log;

fn main() {}
