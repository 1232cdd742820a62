//! A publisher's unacknowledged messages: packet identifiers, how far each exchange is, and ack order.

/// A ring of packet identifiers, `1..=size`; an identifier is free again once its whole exchange is over.
pub(super) struct Window {
    slots: Vec<Slot>,
    /// Issued so far.
    head: u64,
    /// First acknowledgements (PUBACK or PUBREC) so far; in order, the next is for this one.
    acked: u64,
    /// All before this one are over.
    tail: u64,
}

#[derive(Clone, Copy)]
struct Slot {
    stage: Stage,
    due: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Over,
    Sent,
    Released,
}

/// A first acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Acked {
    /// When the message was due.
    pub(super) due: u64,
    /// Acknowledgements follow the order of the messages (MQTT 3.1.1, 4.6).
    pub(super) in_order: bool,
}

impl Window {
    pub(super) fn new(size: u16) -> Self {
        Self {
            slots: vec![Slot { stage: Stage::Over, due: 0 }; usize::from(size)],
            head: 0,
            acked: 0,
            tail: 0,
        }
    }

    /// An identifier for a message due at `due`; `None` when all are in use.
    pub(super) fn issue(&mut self, due: u64) -> Option<u16> {
        if self.head - self.tail >= self.slots.len() as u64 {
            return None;
        }
        let at = self.index(self.head);
        *self.slots.get_mut(at)? = Slot { stage: Stage::Sent, due };
        self.head += 1;
        u16::try_from(at + 1).ok()
    }

    /// PUBACK: the exchange is over. `None` for an identifier that waits for none.
    pub(super) fn puback(&mut self, id: u16) -> Option<Acked> {
        let acked = self.first_ack(id, Stage::Over);
        self.advance();
        acked
    }

    /// PUBREC: PUBREL is to be sent. `None` for an identifier that waits for none.
    pub(super) fn pubrec(&mut self, id: u16) -> Option<Acked> {
        self.first_ack(id, Stage::Released)
    }

    /// PUBCOMP: the exchange is over. `None` for an identifier that waits for none.
    pub(super) fn pubcomp(&mut self, id: u16) -> Option<()> {
        let slot = self.slot(id)?;
        if slot.stage != Stage::Released {
            return None;
        }
        slot.stage = Stage::Over;
        self.advance();
        Some(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.head == self.tail
    }

    /// Exchanges that are not over.
    pub(super) fn open(&self) -> u64 {
        self.slots.iter().filter(|slot| slot.stage != Stage::Over).count() as u64
    }

    fn first_ack(&mut self, id: u16, next: Stage) -> Option<Acked> {
        let in_order = usize::from(id) == self.index(self.acked) + 1;
        let slot = self.slot(id)?;
        if slot.stage != Stage::Sent {
            return None;
        }
        slot.stage = next;
        let due = slot.due;
        self.acked += 1;
        Some(Acked { due, in_order })
    }

    fn advance(&mut self) {
        while self.tail < self.head {
            let at = self.index(self.tail);
            if self.slots.get(at).is_some_and(|slot| slot.stage != Stage::Over) {
                break;
            }
            self.tail += 1;
        }
    }

    fn slot(&mut self, id: u16) -> Option<&mut Slot> {
        self.slots.get_mut(usize::from(id).checked_sub(1)?)
    }

    fn index(&self, nth: u64) -> usize {
        (nth % self.slots.len().max(1) as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_window_issues_nothing_until_the_oldest_exchange_is_over() {
        let mut w = Window::new(2);
        assert_eq!([w.issue(10), w.issue(11), w.issue(12)], [Some(1), Some(2), None]);
        assert_eq!(w.puback(1), Some(Acked { due: 10, in_order: true }));
        assert_eq!([w.issue(13), w.issue(14)], [Some(1), None]);
        assert!(!w.is_empty());
    }

    #[test]
    fn acks_out_of_order_are_noticed_and_still_free_their_identifiers() {
        let mut w = Window::new(3);
        for due in 0..3 {
            w.issue(due);
        }
        assert_eq!(w.puback(2), Some(Acked { due: 1, in_order: false }));
        assert_eq!(w.issue(9), None, "the oldest is still open");
        assert_eq!(w.puback(1), Some(Acked { due: 0, in_order: false }));
        assert_eq!(w.puback(3), Some(Acked { due: 2, in_order: true }));
        assert!(w.is_empty());
    }

    #[test]
    fn an_exchange_at_qos_2_is_over_with_pubcomp_and_not_before() {
        let mut w = Window::new(1);
        assert_eq!(w.issue(5), Some(1));
        assert_eq!(w.pubcomp(1), None);
        assert_eq!(w.pubrec(1), Some(Acked { due: 5, in_order: true }));
        assert_eq!((w.pubrec(1), w.issue(6)), (None, None));
        assert_eq!(w.pubcomp(1), Some(()));
        assert_eq!((w.pubcomp(1), w.issue(6)), (None, Some(1)));
    }

    #[test]
    fn an_identifier_nobody_waits_for_is_refused() {
        let mut w = Window::new(2);
        w.issue(0);
        for id in [0, 2, 3, u16::MAX] {
            assert_eq!(w.puback(id), None, "{id}");
        }
    }
}
