//! What happened, counted. Every drop and every refusal is here.

use std::sync::atomic::{AtomicU64, Ordering};

use mqtt_proto::codec::QoS;

#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// For what rises and falls.
    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Messages of one direction, by QoS.
#[derive(Default)]
pub(crate) struct Traffic {
    messages: [Counter; 3],
    /// Of payloads.
    bytes: [Counter; 3],
}

/// Some messages, to be added at once.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    messages: [u64; 3],
    bytes: [u64; 3],
}

impl Tally {
    pub(crate) fn count(&mut self, qos: QoS, payload: usize) {
        let index = usize::from(qos as u8);
        if let (Some(messages), Some(bytes)) = (self.messages.get_mut(index), self.bytes.get_mut(index)) {
            *messages += 1;
            *bytes += payload as u64;
        }
    }

    pub(crate) fn messages(&self) -> u64 {
        self.messages.iter().sum()
    }
}

impl Traffic {
    pub(crate) fn add(&self, tally: &Tally) {
        let all = self.messages.iter().chain(&self.bytes).zip(tally.messages.iter().chain(&tally.bytes));
        all.filter(|(_, n)| **n > 0).for_each(|(counter, n)| counter.add(*n));
    }

    /// By QoS.
    pub(crate) fn messages(&self) -> [u64; 3] {
        self.messages.each_ref().map(Counter::get)
    }

    /// By QoS.
    pub(crate) fn bytes(&self) -> [u64; 3] {
        self.bytes.each_ref().map(Counter::get)
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        #[derive(Default)]
        pub(crate) struct Counters {
            /// PUBLISH packets taken in.
            pub(crate) received: Traffic,
            /// PUBLISH packets sent.
            pub(crate) sent: Traffic,
            $($(#[$doc])* pub(crate) $name: Counter,)*
        }

        impl Counters {
            /// Names and values of what is a single figure, in the order of their definition.
            pub(crate) fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name.get()),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Messages that went for want of room: QoS 0 to a slow device, or the oldest over a session's cap.
    queue_full_drops,
    /// Messages that went because their expiry interval had passed.
    expired_drops,
    /// Messages larger than their receiver's Maximum Packet Size.
    oversize_drops,
    /// Connections refused for their credentials or client ID.
    connects_refused,
    /// Connections refused because their passwords could not be checked in time: too many waited.
    logins_busy,
    /// TLS handshakes that a client broke off, could not make or did not finish in time.
    tls_handshakes_failed,
    /// When the TLS certificate expires, in seconds since the Unix epoch; 0 without one.
    tls_certificate_expires_at,
    /// Requests that opened no WebSocket, or did not end in time.
    ws_handshakes_failed,
    /// Connections without the PROXY header that was asked for.
    proxy_headers_missing,
    /// Times that connections were accepted more slowly for the connect rate.
    connect_rate_pauses,
    /// Connections closed before their CONNECT, the oldest of too many.
    half_open_evicted,
    /// Connections refused because their address has as many as it may.
    connections_over_address_limit,
    /// Logins that had to wait, or were refused, after too many wrong passwords of their address and user.
    logins_slowed,
    /// Connections refused because memory was short.
    connects_without_memory,
    /// Connections closed because memory was short and much waited for them.
    connections_shed,
    /// Connections refused over the instance's limit.
    connections_over_limit,
    /// Publishes without a grant.
    publishes_refused,
    /// Subscriptions without a grant.
    subscriptions_refused,
    /// Subscriptions over the instance's limit.
    subscriptions_over_limit,
    /// Times a socket was read more slowly for the publish rate.
    publish_rate_pauses,
    /// Times that deliveries waited for the delivery rate.
    delivery_rate_pauses,
    /// Connections closed for what they sent.
    protocol_violations,
    /// Sessions ended because their device stayed away.
    sessions_expired,
    /// Records on `mq2mqtt` that named no publishable message.
    bridge_rejects,
}
