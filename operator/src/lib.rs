//! The operator: from the objects people write to those that Kubernetes runs.
//!
//! - [`instance`]: what belongs to one MqttInstance;
//! - [`parent_topic`]: the Kafka topic of one ParentTopic;
//! - [`status`]: what is said on an object;
//! - [`user`]: generated passwords, and the hashes of all passwords;
//! - [`check`]: whether one is at work;
//! - [`cli`]: the command line.

pub mod check;
pub mod cli;
pub mod instance;
pub mod parent_topic;
pub mod status;
pub mod user;
