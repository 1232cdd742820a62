//! One MqttUser: [`password`] generates passwords for those who name none, [`hasher`] hashes all of them.

pub mod hasher;
pub mod password;
