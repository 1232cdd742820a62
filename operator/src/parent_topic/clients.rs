//! Clients of Kafka, one an instance, for as long as it reaches its Kafka in the same way.

use std::collections::HashMap;

use mqtt_kafka::Admin;
use mqtt_operator_api::render::ObjectName;
use parking_lot::Mutex;

use super::wants::Access;

/// Who this is, in what Kafka logs.
const CLIENT: &str = "mqtt-operator";

#[derive(Default)]
pub struct Clients(Mutex<HashMap<ObjectName, (mqtt_kafka::Access, Admin)>>);

impl Clients {
    /// The client of an instance. Those of instances that are not `used` end.
    pub fn get(
        &self,
        instance: &ObjectName,
        access: &Access,
        used: impl Fn(&ObjectName) -> bool,
    ) -> Result<Admin, mqtt_kafka::Error> {
        let Access { kafka, secrets } = access;
        let access = mqtt_kafka::Access::new(kafka.clone(), secrets.clone(), CLIENT);
        let mut clients = self.0.lock();
        if let Some((_, admin)) = clients.get(instance).filter(|(same, _)| *same == access) {
            return Ok(admin.clone());
        }
        let admin = Admin::new(&access, "operator")?;
        let before = clients.insert(instance.clone(), (access, admin.clone()));
        let unused: Vec<_> = clients.extract_if(|other, _| other != instance && !used(other)).collect();
        drop(clients);
        // The end of a client is waited for.
        tokio::task::spawn_blocking(move || drop((before, unused)));
        Ok(admin)
    }
}
