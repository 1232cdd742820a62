//! What both sides, broker and operator, say to Kafka as administrators: how it is reached, and topics made, verified
//! and altered. Because they share this, whoever comes first does what the other one would have done. And, for the
//! broker alone, records in bulk.
//!
//! | part | owns |
//! |---|---|
//! | [`access`] | addresses and credentials, and the client settings made of them |
//! | [`settings`] | what a topic is asked to be, and which topics an instance's config asks for |
//! | [`plan`] | what an existing topic lacks, decided without asking Kafka |
//! | [`admin`] | the single questions to Kafka, each with a bound, and what its answers mean |
//! | [`topics`] | the whole way from a name and settings to a topic that is in line |
//! | [`alter`] | questions that rdkafka does not wrap |
//! | [`bulk`] | records and their outcomes, many at a time |
//!
//! `alter` and `bulk` call librdkafka itself: the only unsafe code of the project.

pub mod access;
pub mod admin;
mod alter;
pub mod bulk;
pub mod plan;
pub mod settings;
pub mod topics;

pub use self::{
    access::Access,
    admin::{Admin, Error, Fault},
    settings::{Cleanup, TopicSettings, largest_record},
    topics::{Found, ensure},
};
