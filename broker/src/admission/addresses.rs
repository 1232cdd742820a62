//! How many connections each address has.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use parking_lot::Mutex;

#[derive(Debug, Default)]
pub(crate) struct Addresses(Mutex<HashMap<IpAddr, u64>>);

/// One connection of an address; given back when dropped.
pub(crate) struct Seat {
    address: IpAddr,
    all: Arc<Addresses>,
}

impl Addresses {
    /// A seat for one more, unless the address has `most` already.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr, most: u64) -> Option<Seat> {
        let address = one_host(address);
        let mut counts = self.0.lock();
        let count = counts.entry(address).or_default();
        if *count >= most.max(1) {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(Seat { address, all: self.clone() })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut counts = self.all.0.lock();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
                if counts.capacity() > 4 * (counts.len() + 64) {
                    counts.shrink_to_fit();
                }
            }
        }
    }
}

/// What one host may call its own: an address of IPv4, a network of 64 bits of IPv6.
pub(super) fn one_host(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_gets_no_seat_beyond_its_own_and_others_get_theirs() {
        let all = Arc::new(Addresses::default());
        let enter = |address: &str| all.enter(address.parse().unwrap(), 2);
        let seats = [enter("192.0.2.1"), enter("::ffff:192.0.2.1")];
        assert!(seats.iter().all(Option::is_some), "an address of IPv4 may be written as one of IPv6");
        assert!(enter("192.0.2.1").is_none());
        assert!(enter("192.0.2.2").is_some());
        drop(seats);
        assert!(enter("192.0.2.1").is_some());
        let _network = [enter("2001:db8::1"), enter("2001:db8::2")];
        assert!(enter("2001:db8::3").is_none(), "one network of 64 bits is one host");
        assert!(enter("2001:db8:0:1::1").is_some());
        drop(_network);
        assert!(all.0.lock().is_empty());
    }
}
