//! One publisher: what it may send now, and the bytes of it.

use std::collections::VecDeque;

use super::check::Stamp;
use super::plan::Qos;
use super::window::Window;
use super::wire::PublishHead;

/// Bytes written ahead of the socket before a publisher waits for it.
const MOST_PENDING: usize = 256 * 1024;

pub(super) struct Publisher {
    id: u32,
    /// Its connection.
    pub(super) conn: usize,
    head: PublishHead,
    qos: Qos,
    pub(super) window: Window,
    pub(super) pace: Pace,
    /// Messages sent, which is the next one's number.
    pub(super) sent: u32,
    /// Subscribers that each message goes to.
    fan: u64,
    /// Deliveries seen of `sent * fan`; the lost ones that a later message has shown count as seen.
    delivered: u64,
}

/// When a publisher sends.
pub(super) enum Pace {
    /// As soon as the window and the subscribers' lag allow. `lag` is in deliveries.
    Flat { lag: u64, held: bool },
    /// When each message is due; those due already and not sent wait here.
    Timed { due: VecDeque<u64> },
}

/// A fresh publisher's fixed parts.
pub(super) struct Start<'a> {
    pub(super) id: u32,
    pub(super) conn: usize,
    pub(super) topic: &'a str,
    pub(super) qos: Qos,
    pub(super) payload: usize,
    pub(super) window: u16,
    /// Messages undelivered at most; `None` for a timed publisher.
    pub(super) lag: Option<u32>,
    pub(super) fan: u32,
}

impl Publisher {
    pub(super) fn new(s: &Start<'_>) -> Self {
        let pace = match s.lag {
            Some(lag) => Pace::Flat { lag: u64::from(lag) * u64::from(s.fan), held: false },
            None => Pace::Timed { due: VecDeque::new() },
        };
        Self {
            id: s.id,
            conn: s.conn,
            head: PublishHead::new(s.topic, s.qos as u8, s.payload),
            qos: s.qos,
            window: Window::new(s.window),
            pace,
            sent: 0,
            fan: s.fan.into(),
            delivered: 0,
        }
    }

    /// Writes the messages that may go now, `most` at most; returns how many.
    pub(super) fn fill(&mut self, now: u64, most: u32, filler: &[u8], out: &mut Vec<u8>) -> u32 {
        let before = self.sent;
        while self.sent - before < most && out.len() < MOST_PENDING {
            let due = match &mut self.pace {
                Pace::Flat { lag, held } => {
                    // Without subscribers there is nothing to lag behind.
                    if self.fan > 0 && u64::from(self.sent) * self.fan - self.delivered >= *lag {
                        *held = true;
                        break;
                    }
                    now
                }
                Pace::Timed { due } => match due.front() {
                    Some(&due) => due,
                    None => break,
                },
            };
            let id = match self.qos {
                Qos::AtMostOnce => 0,
                _ => match self.window.issue(due) {
                    Some(id) => id,
                    None => break,
                },
            };
            if let Pace::Timed { due } = &mut self.pace {
                due.pop_front();
            }
            self.head.push(out, id);
            Stamp { publisher: self.id, number: self.sent, due }.push(out);
            out.extend_from_slice(filler);
            self.sent += 1;
        }
        self.sent - before
    }

    /// Counts deliveries; true when a publisher that its subscribers' lag held back may go on.
    pub(super) fn delivered(&mut self, count: u32) -> bool {
        self.delivered += u64::from(count);
        let behind = (u64::from(self.sent) * self.fan).saturating_sub(self.delivered);
        match &mut self.pace {
            // Half way down, so that it goes on with a batch.
            Pace::Flat { lag, held } if *held && behind <= *lag / 2 => {
                *held = false;
                true
            }
            _ => false,
        }
    }

    /// All it sent is acknowledged and delivered.
    pub(super) fn settled(&self) -> bool {
        self.window.is_empty() && self.delivered >= u64::from(self.sent) * self.fan
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publisher(qos: Qos, window: u16, lag: Option<u32>, fan: u32) -> Publisher {
        Publisher::new(&Start { id: 0, conn: 0, topic: "t", qos, payload: 16, window, lag, fan })
    }

    fn fill(p: &mut Publisher) -> u32 {
        p.fill(0, 1000, &[], &mut Vec::new())
    }

    #[test]
    fn a_flat_out_publisher_stops_at_its_window_and_goes_on_with_an_ack() {
        let mut p = publisher(Qos::AtLeastOnce, 4, Some(100), 1);
        assert_eq!([fill(&mut p), fill(&mut p)], [4, 0]);
        p.window.puback(1);
        assert_eq!(fill(&mut p), 1);
    }

    #[test]
    fn a_flat_out_publisher_never_outruns_its_subscribers_by_more_than_the_lag() {
        let mut p = publisher(Qos::AtMostOnce, 1, Some(10), 3);
        assert_eq!([fill(&mut p), fill(&mut p)], [10, 0]);
        assert!(!p.delivered(14), "it waits for half of the lag");
        assert!(p.delivered(1));
        assert_eq!(fill(&mut p), 5);
    }

    #[test]
    fn a_timed_publisher_sends_what_is_due_with_the_time_it_was_due() {
        let mut p = publisher(Qos::AtMostOnce, 1, None, 1);
        assert_eq!(fill(&mut p), 0);
        if let Pace::Timed { due } = &mut p.pace {
            due.extend([7, 8]);
        }
        let mut out = Vec::new();
        assert_eq!(p.fill(99, 1000, &[], &mut out), 2);
        let times: Vec<u64> =
            out.chunks(21).map(|message| Stamp::cut(&message[5..]).unwrap().0.due).collect();
        assert_eq!(times, [7, 8]);
        assert!(!p.settled());
        p.delivered(2);
        assert!(p.settled());
    }
}
