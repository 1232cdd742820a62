//! One MqttInstance: [`build`] makes the objects that run it.

pub mod build;
