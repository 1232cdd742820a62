//! The four resource kinds of `mqtt.dms.dev/v1alpha1`.
