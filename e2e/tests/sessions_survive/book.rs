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
    /// Who had an acknowledgement since the last fault.
    served: BTreeSet<String>,
    /// Those that only listen, since their last SUBACK.
    listeners: BTreeMap<String, Listening>,
    /// What members of the group have had, by publisher.
    shared: BTreeMap<String, BTreeSet<usize>>,
    /// Who has a connection.
    online: BTreeSet<String>,
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

/// What somebody is owed who listens to what one recipient gets.
struct Listening {
    /// Absent: it is a member of the group.
    to: Option<String>,
    /// By publisher, the first number that was published after its SUBACK.
    from: BTreeMap<String, usize>,
    /// By publisher.
    heard: BTreeMap<String, BTreeSet<usize>>,
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
            pages.served.insert(from.to_owned());
        }
    }

    pub(crate) fn is_online(&self, who: &str) {
        self.0.lock().online.insert(who.to_owned());
    }

    /// A clean device is owed nothing more then.
    pub(crate) fn is_offline(&self, who: &str) {
        let mut pages = self.0.lock();
        pages.online.remove(who);
        if pages.listeners.get(who).is_some_and(|listening| listening.to.is_some()) {
            pages.listeners.remove(who);
        }
    }

    pub(crate) fn fault_is_over(&self) {
        self.0.lock().served.clear();
    }

    /// Whether so many have a connection, and so many an acknowledgement since the last fault.
    pub(crate) fn are_back(&self, online: usize, served: usize) -> bool {
        let pages = self.0.lock();
        pages.online.len() == online && pages.served.len() == served
    }

    /// It has its SUBACK: for what one recipient gets, or as a member of the group.
    pub(crate) fn listen(&self, who: &str, to: Option<&str>) {
        let mut pages = self.0.lock();
        let from = pages.published.iter().map(|(from, published)| (from.clone(), published.count)).collect();
        let listening = Listening { to: to.map(str::to_owned), from, heard: BTreeMap::new() };
        pages.listeners.insert(who.to_owned(), listening);
    }

    pub(crate) fn is_listening(&self, who: &str) -> bool {
        self.0.lock().listeners.contains_key(who)
    }

    pub(crate) fn listens(&self) -> usize {
        self.0.lock().listeners.len()
    }

    /// Takes a payload that came to somebody who only listens.
    pub(crate) fn hear(&self, who: &str, payload: &[u8]) -> Result<()> {
        let (from, number) = parse(payload)?;
        let mut pages = self.0.lock();
        let pages = &mut *pages;
        let Some(listening) = pages.listeners.get_mut(who) else { return Ok(()) };
        let heard = if listening.to.is_some() { &mut listening.heard } else { &mut pages.shared };
        heard.entry(from).or_default().insert(number);
        Ok(())
    }

    /// Its publisher sent it behind a later one: it may come so.
    pub(crate) fn excuse(&self, from: &str, number: usize) {
        self.0.lock().late.insert((from.to_owned(), number));
    }

    /// Takes a payload that came to somebody.
    pub(crate) fn deliver(&self, to: &str, payload: &[u8]) -> Result<()> {
        let (from, number) = parse(payload)?;
        self.0.lock().delivered.entry((from, to.to_owned())).or_default().push(number);
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

    /// Acknowledged and not delivered, to its recipient, to a member of the group or to a clean device that listens: publisher,
    /// who should have it, QoS and number.
    pub(crate) fn missing(&self) -> Vec<(String, String, u8, usize)> {
        let pages = self.0.lock();
        let mut missing = Vec::new();
        for (from, published) in &pages.published {
            let delivered = pages.delivered.get(&(from.clone(), published.to.clone()));
            let delivered: BTreeSet<usize> = delivered.into_iter().flatten().copied().collect();
            let mut expect = |who: &str, heard: Option<&BTreeSet<usize>>, first: usize| {
                let heard = |number: &usize| heard.is_some_and(|heard| heard.contains(number));
                let lost = published.acked.range(first..).filter(|number| !heard(number));
                missing.extend(lost.map(|number| (from.clone(), who.to_owned(), published.qos, *number)));
            };
            expect(&published.to, Some(&delivered), 0);
            if !pages.listeners.is_empty() {
                expect("the group", pages.shared.get(from), 0);
            }
            for (who, Listening { to, from: first, heard }) in &pages.listeners {
                if to.as_ref() == Some(&published.to) {
                    expect(who, heard.get(from), first.get(from).copied().unwrap_or(0));
                }
            }
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

/// Publisher and number.
fn parse(payload: &[u8]) -> Result<(String, usize)> {
    let text = std::str::from_utf8(payload)?;
    let (from, number) = text.split_once(' ').with_context(|| format!("a payload {text:?}"))?;
    Ok((from.to_owned(), number.parse()?))
}

#[test]
fn what_a_clean_device_that_listens_or_the_group_lacks_is_told() {
    let book = Book::default();
    book.publish("meter-1", "meter-3", 1);
    book.listen("watcher-3", Some("meter-3"));
    book.listen("member-0", None);
    book.publish("meter-1", "meter-3", 1);
    for number in 0..2 {
        book.acknowledge("meter-1", number);
        book.deliver("meter-3", format!("meter-1 {number}").as_bytes()).unwrap();
    }
    let lacks = |who: &str, number| ("meter-1".to_owned(), who.to_owned(), 1, number);
    assert_eq!(book.missing(), [lacks("the group", 0), lacks("the group", 1), lacks("watcher-3", 1)]);
    book.hear("member-0", b"meter-1 0").unwrap();
    book.hear("member-0", b"meter-1 1").unwrap();
    assert_eq!(book.missing(), [lacks("watcher-3", 1)]);
    book.is_offline("watcher-3");
    book.is_offline("member-0");
    assert_eq!(book.missing(), []);
    book.publish("meter-1", "meter-3", 1);
    book.acknowledge("meter-1", 2);
    book.deliver("meter-3", b"meter-1 2").unwrap();
    assert_eq!(book.missing(), [lacks("the group", 2)]);
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
