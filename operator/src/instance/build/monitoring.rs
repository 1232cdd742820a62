//! The ServiceMonitor, which tells the Prometheus Operator where the brokers are.

use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde_json::json;

use super::{names::Frame, services::ADMIN};

/// There if the instance asks for it.
pub(super) fn service_monitor(frame: &Frame<'_>) -> Option<DynamicObject> {
    let monitoring = Some(&frame.spec().monitoring).filter(|monitoring| monitoring.service_monitor)?;
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("monitoring.coreos.com", "v1", "ServiceMonitor"));
    // Of the instance's Services the headless one alone has this port.
    let spec = json!({
        "selector": {"matchLabels": frame.selector()},
        "endpoints": [{"port": ADMIN, "path": "/metrics"}],
    });
    let mut monitor = DynamicObject::new(&frame.broker(), &kind).data(json!({"spec": spec}));
    monitor.metadata = frame.meta(frame.broker());
    if let Some(labels) = &mut monitor.metadata.labels {
        labels.extend(monitoring.labels.clone());
    }
    Some(monitor)
}
