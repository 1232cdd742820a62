//! The operator: from the objects people write to those that Kubernetes runs.
//!
//! - [`instance`]: what belongs to one MqttInstance;
//! - [`cli`]: the command line.

pub mod cli;
pub mod instance;
