//! The operator: from the objects people write to those that Kubernetes runs.
//!
//! - [`watch`]: what the cluster holds; [`queue`]: what of it is to be reconciled, and when;
//! - [`instance`]: one MqttInstance with all that names it, from fetching to what is said of it;
//! - [`parent_topic`]: the Kafka topic of one ParentTopic;
//! - [`kept`]: what outlives an instance, taken back or swept;
//! - [`user`]: generated passwords, and the hashes of all passwords;
//! - [`status`]: what is said on an object, as conditions; [`invalid`]: on one that can't be read;
//! - [`apply`]: the only writer; [`leader`]: whether this process may write;
//! - [`run`]: the process that has all of it; [`health`], [`metrics`]: what it tells of itself;
//! - [`batch`]: many requests, for as long as there is time; [`digest`]: what is the same for the same;
//! - [`check`]: whether one is at work;
//! - [`cli`]: the command line.

pub mod apply;
pub mod batch;
pub mod check;
pub mod cli;
pub mod digest;
pub mod health;
pub mod instance;
pub mod invalid;
pub mod kept;
pub mod leader;
pub mod metrics;
pub mod parent_topic;
pub mod queue;
pub mod run;
pub mod status;
pub mod user;
pub mod watch;
