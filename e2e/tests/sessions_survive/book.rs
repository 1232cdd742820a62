//! What was published, acknowledged and delivered, by whom to whom; and the promises held against it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use parking_lot::Mutex;

/// Kept by all devices together.
#[derive(Default)]
pub(crate) struct Book(Mutex<Pages>);

#[derive(Default)]
struct Pages {
    /// By publisher.
    published: BTreeMap<String, Published>,
    /// By publisher and recipient, the numbers as they came, repeats and all.
    delivered: BTreeMap<(String, String), Vec<usize>>,
    acked: usize,
    /// Messages that their publishers sent behind later ones.
    late: BTreeSet<(String, usize)>,
    /// What the broker may not do, told at once.
    wrong: Vec<String>,
}

/// One publisher's messages; all go to one recipient with one QoS.
#[derive(Default)]
struct Published {
    to: String,
    qos: u8,
    count: usize,
    acked: BTreeSet<usize>,
}

/// A promise that was broken.
#[derive(Debug)]
#[allow(dead_code, reason = "fields are for Debug")]
pub(crate) enum Breach {
    /// With QoS 2, and more than once.
    Repeated { from: String, to: String, number: usize },
    /// Its first delivery came after that of a later one.
    Disorder { from: String, to: String, number: usize, after: usize },
    /// Delivered, and never published so.
    Foreign { from: String, to: String, number: usize },
}

impl Book {
    /// Enters the next message; gives its payload.
    pub(crate) fn publish(&self, from: &str, to: &str, qos: u8) -> (usize, String) {
        let mut pages = self.0.lock();
        let published = pages.published.entry(from.to_owned()).or_default();
        (published.to, published.qos) = (to.to_owned(), qos);
        let number = published.count;
        published.count += 1;
        (number, format!("{from} {number}"))
    }

    /// Messages of one publisher that are not acknowledged.
    pub(crate) fn open_of(&self, from: &str) -> usize {
        self.0.lock().published.get(from).map_or(0, |published| published.count - published.acked.len())
    }

    pub(crate) fn acknowledge(&self, from: &str, number: usize) {
        let mut pages = self.0.lock();
        if pages.published.get_mut(from).is_some_and(|published| published.acked.insert(number)) {
            pages.acked += 1;
        }
    }

    /// Its publisher sent it behind a later one: it may come so.
    pub(crate) fn excuse(&self, from: &str, number: usize) {
        self.0.lock().late.insert((from.to_owned(), number));
    }

    /// Takes a payload that came to somebody.
    pub(crate) fn deliver(&self, to: &str, payload: &[u8]) -> Result<()> {
        let text = std::str::from_utf8(payload)?;
        let (from, number) = text.split_once(' ').with_context(|| format!("a payload {text:?}"))?;
        let page = (from.to_owned(), to.to_owned());
        self.0.lock().delivered.entry(page).or_default().push(number.parse()?);
        Ok(())
    }

    pub(crate) fn accuse(&self, what: String) {
        self.0.lock().wrong.push(what);
    }

    pub(crate) fn wrong(&self) -> Vec<String> {
        self.0.lock().wrong.clone()
    }

    pub(crate) fn acked(&self) -> usize {
        self.0.lock().acked
    }

    /// Messages that are not acknowledged.
    pub(crate) fn open(&self) -> usize {
        self.0.lock().published.values().map(|published| published.count - published.acked.len()).sum()
    }

    /// Acknowledged and not delivered: publisher, recipient, QoS and number.
    pub(crate) fn missing(&self) -> Vec<(String, String, u8, usize)> {
        let pages = self.0.lock();
        let mut missing = Vec::new();
        for (from, published) in &pages.published {
            let delivered = pages.delivered.get(&(from.clone(), published.to.clone()));
            let delivered: BTreeSet<usize> = delivered.into_iter().flatten().copied().collect();
            let lost = published.acked.difference(&delivered);
            missing.extend(lost.map(|number| (from.clone(), published.to.clone(), published.qos, *number)));
        }
        missing
    }

    pub(crate) fn breaches(&self) -> Vec<Breach> {
        let pages = self.0.lock();
        let mut breaches = Vec::new();
        for ((from, to), numbers) in &pages.delivered {
            let published = pages.published.get(from).filter(|published| published.to == *to);
            let mut seen = BTreeSet::new();
            for &number in numbers {
                let (from, to) = (from.clone(), to.clone());
                match published {
                    Some(published) if number < published.count => {
                        let last = seen.last().copied();
                        if !seen.insert(number) {
                            if published.qos == 2 && to.starts_with("gateway") {
                                breaches.push(Breach::Repeated { from, to, number });
                            }
                        } else if let Some(after) = last.filter(|last| *last > number)
                            && !pages.late.contains(&(from.clone(), number))
                        {
                            breaches.push(Breach::Disorder { from, to, number, after });
                        }
                    }
                    _ => breaches.push(Breach::Foreign { from, to, number }),
                }
            }
        }
        breaches
    }
}

#[test]
fn a_loss_a_repeat_and_a_disorder_are_told() {
    let book = Book::default();
    for _ in 0..3 {
        book.publish("meter-0", "gateway-0", 2);
    }
    (0..3).for_each(|number| book.acknowledge("meter-0", number));
    for payload in ["meter-0 2", "meter-0 0", "meter-0 2"] {
        book.deliver("gateway-0", payload.as_bytes()).unwrap();
    }
    assert_eq!((book.open(), book.acked()), (0, 3));
    assert_eq!(book.missing(), [("meter-0".into(), "gateway-0".into(), 2, 1)]);
    let breaches = book.breaches();
    assert!(
        matches!(
            breaches.as_slice(),
            [Breach::Disorder { number: 0, after: 2, .. }, Breach::Repeated { number: 2, .. }]
        ),
        "{breaches:?}"
    );
}
