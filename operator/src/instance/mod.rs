//! One MqttInstance, and with it all that names it: fetch → validate → build → apply, and then what is said of it.
//!
//! | part | does |
//! |---|---|
//! | [`fetch`] | gathers what the instance is rendered from |
//! | [`certificates`] | whether certificates and keys can serve |
//! | [`issuing`] | makes the certificate that brokers show each other |
//! | [`rivals`], [`clusters`] | two instances on one Kafka, and which one each has |
//! | [`build`] | makes the objects that run it |
//! | [`nodes`], [`nudging`] | ask its brokers, and decide which pods are told of a change |
//! | [`in_force`] | which users and grants brokers have in force |
//! | [`verdict`], [`members`] | how the instance and what names it fare |
//! | `saying` | says so |
//! | [`reconcile`] | the way through all of it |

pub mod build;
pub mod certificates;
pub mod clusters;
pub mod fetch;
pub mod in_force;
pub mod issuing;
pub mod members;
pub mod nodes;
pub mod nudging;
mod objects;
pub mod reconcile;
pub mod rivals;
mod saying;
pub mod verdict;
