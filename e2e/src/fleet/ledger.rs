//! What a fleet remembers, and the check of it against what was stored.
//!
//! [`Ledger::check`] is a pure function: a run's ledger and the records in, every breach of a promise out.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use mqtt_broker_api::admin::RecordView;

use super::device::{Published, Role};
use crate::broker::{Stored, header};

/// A parent topic of this prefix is ordered.
const ORDERED: &str = "orderMsg2mq-";
/// Breaches that a report names; it counts the rest.
const NAMED: usize = 20;

/// What a fleet did, from its start to its end.
#[derive(Debug)]
pub struct Ledger {
    pub devices: Vec<Account>,
    /// Since the fleet's start.
    pub lasted: Duration,
    /// Connections made, by all.
    pub connects: u64,
    /// CONNECTs answered that the broker is unavailable.
    pub refused: u64,
}

/// One device's part.
#[derive(Clone, Debug)]
pub struct Account {
    pub role: Role,
    /// By number, from 0.
    pub published: Vec<Published>,
}

/// A stored record, as far as the check looks at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub topic: String,
    pub partition: u32,
    pub offset: u64,
    pub client_id: String,
    /// The payload, a number if a device sent it.
    pub payload: String,
    pub message_id: String,
    pub qos: u8,
}

/// Which repeats are right, depending on what befell the store and the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeats {
    /// None: nothing befell them.
    Never,
    /// QoS 1 as often as it was sent: the broker died, the store repeats nothing.
    OfQos1,
    /// Any record, under its `messageId`: the store may repeat, too. QoS 1 under as many as it was sent times.
    SameId,
}

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Breach {
    /// Acknowledged (QoS 2: PUBREC came) and in no record.
    Missing { client: String, number: usize },
    /// Under an ordered parent a number's first record stands behind that of a later number.
    Disorder { client: String, number: usize, behind: usize },
    /// Under an ordered parent a client's records stand in more than one partition.
    Scattered { client: String, partitions: BTreeSet<u32> },
    /// Stored more often than is right.
    Repeated { client: String, number: usize, records: usize },
    /// Stored under more message IDs than is right: a consumer takes it for several messages.
    Renamed { client: String, number: usize, ids: BTreeSet<String> },
    /// A record no device sent, or not so.
    Foreign { entry: Entry, why: &'static str },
}

impl Ledger {
    /// Every breach of a promise, given all records of the parents; an empty list: all were kept.
    pub fn check(&self, entries: &[Entry], repeats: Repeats) -> Vec<Breach> {
        let mut breaches = Vec::new();
        let mut stored: HashMap<&str, BTreeMap<usize, Vec<&Entry>>> = HashMap::new();
        let accounts: HashMap<&str, &Account> =
            self.devices.iter().map(|account| (account.role.client_id.as_str(), account)).collect();
        for entry in entries {
            match number_of(entry, accounts.get(entry.client_id.as_str()).copied()) {
                Ok(number) => {
                    let of_client = stored.entry(&entry.client_id).or_default();
                    of_client.entry(number).or_default().push(entry);
                }
                Err(why) => breaches.push(Breach::Foreign { entry: entry.clone(), why }),
            }
        }
        let none = BTreeMap::new();
        for account in &self.devices {
            account.check(
                stored.get(account.role.client_id.as_str()).unwrap_or(&none),
                repeats,
                &mut breaches,
            );
        }
        breaches
    }

    /// The check, as a test's result: the breaches by name.
    pub fn ensure_kept(&self, entries: &[Entry], repeats: Repeats) -> Result<()> {
        let breaches = self.check(entries, repeats);
        let named: Vec<String> = breaches.iter().take(NAMED).map(Breach::to_string).collect();
        ensure!(breaches.is_empty(), "{} broken promises:\n{}", breaches.len(), named.join("\n"));
        Ok(())
    }

    pub fn published(&self) -> usize {
        self.devices.iter().map(|account| account.published.len()).sum()
    }

    /// Numbers sent more than once.
    pub fn resent(&self) -> usize {
        let all = self.devices.iter().flat_map(|account| &account.published);
        all.filter(|published| published.times > 1).count()
    }

    /// When each ack came, in order.
    pub fn acks(&self) -> Vec<Duration> {
        let all = self.devices.iter().flat_map(|account| &account.published);
        let mut times: Vec<Duration> = all.filter_map(|published| published.acked).collect();
        times.sort_unstable();
        times
    }

    /// Acks in each second since the start.
    pub fn acks_per_second(&self) -> Vec<usize> {
        let mut seconds = vec![0; usize::try_from(self.lasted.as_secs()).unwrap_or_default() + 1];
        for ack in self.acks() {
            if let Some(count) = usize::try_from(ack.as_secs()).ok().and_then(|at| seconds.get_mut(at)) {
                *count += 1;
            }
        }
        seconds
    }

    /// Acks a second between two times.
    pub fn rate(&self, from: Duration, until: Duration) -> f64 {
        let count = self.acks().iter().filter(|ack| (from..until).contains(*ack)).count();
        count as f64 / until.saturating_sub(from).as_secs_f64()
    }

    /// The longest time without an ack between two times: how long it was and when it began.
    pub fn longest_pause(&self, from: Duration, until: Duration) -> (Duration, Duration) {
        let mut marks = self.acks();
        marks.retain(|ack| (from..until).contains(ack));
        marks.insert(0, from);
        marks.push(until);
        let pauses = marks.windows(2).filter_map(|pair| match pair {
            [before, after] => Some((after.saturating_sub(*before), *before)),
            _ => None,
        });
        pauses.max_by_key(|(pause, _)| *pause).unwrap_or_default()
    }
}

impl Account {
    fn check(&self, stored: &BTreeMap<usize, Vec<&Entry>>, repeats: Repeats, breaches: &mut Vec<Breach>) {
        let client = || self.role.client_id.clone();
        for (number, published) in self.published.iter().enumerate() {
            let promised = published.acked.or(published.received).is_some();
            if promised && !stored.contains_key(&number) {
                breaches.push(Breach::Missing { client: client(), number });
            }
        }
        for (&number, entries) in stored {
            let times = self.published.get(number).map_or(0, |published| published.times) as usize;
            let of_qos_1 = self.role.qos == 1;
            let most = match repeats {
                Repeats::OfQos1 if of_qos_1 => times,
                Repeats::Never | Repeats::OfQos1 => 1,
                Repeats::SameId => usize::MAX,
            };
            if entries.len() > most {
                breaches.push(Breach::Repeated { client: client(), number, records: entries.len() });
            }
            let ids: BTreeSet<String> = entries.iter().map(|entry| entry.message_id.clone()).collect();
            if ids.len() > if of_qos_1 { times } else { 1 } {
                breaches.push(Breach::Renamed { client: client(), number, ids });
            }
        }
        if self.role.parent.starts_with(ORDERED) {
            self.check_order(stored, breaches);
        }
    }

    /// All in one partition, first records in the order of the numbers.
    fn check_order(&self, stored: &BTreeMap<usize, Vec<&Entry>>, breaches: &mut Vec<Breach>) {
        let client = || self.role.client_id.clone();
        let partitions: BTreeSet<u32> = stored.values().flatten().map(|entry| entry.partition).collect();
        if partitions.len() > 1 {
            // Offsets of several partitions can't be compared.
            breaches.push(Breach::Scattered { client: client(), partitions });
            return;
        }
        let mut last: Option<(u64, usize)> = None;
        for (&number, entries) in stored {
            let Some(first) = entries.iter().map(|entry| entry.offset).min() else { continue };
            match last {
                Some((offset, earlier)) if first < offset => {
                    breaches.push(Breach::Disorder { client: client(), number: earlier, behind: number });
                }
                _ => {}
            }
            if last.is_none_or(|(offset, _)| first > offset) {
                last = Some((first, number));
            }
        }
    }
}

/// The number that a device published as this record.
fn number_of(entry: &Entry, account: Option<&Account>) -> Result<usize, &'static str> {
    let account = account.ok_or("of no device")?;
    let number = entry.payload.parse().map_err(|_| "not a number")?;
    if account.published.get(number).is_none() {
        return Err("never sent");
    }
    if account.role.parent != entry.topic {
        return Err("under another parent");
    }
    if account.role.qos != entry.qos {
        return Err("of another QoS");
    }
    if entry.message_id.is_empty() {
        return Err("without a message ID");
    }
    Ok(number)
}

impl Entry {
    /// # Errors
    /// A record that is none of a parent topic.
    pub fn of(record: &RecordView) -> Result<Self> {
        let place = || format!("{} {}:{}", record.topic, record.partition, record.offset);
        let stored = Stored::of(record).with_context(place)?;
        let text = |name| header(record, name).with_context(|| format!("{}: no header {name}", place()));
        ensure!(text("clientId")? == stored.client_id, "{}: header and value differ", place());
        ensure!(text("mqttTopic")? == stored.topic, "{}: header and value differ", place());
        Ok(Self {
            topic: record.topic.clone(),
            partition: record.partition,
            offset: record.offset,
            message_id: text("messageId")?.to_owned(),
            qos: text("qoslevel")?.parse().with_context(place)?,
            client_id: stored.client_id,
            payload: stored.payload,
        })
    }
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { client, number } => {
                write!(f, "{client}: {number} was acknowledged and is missing")
            }
            Self::Disorder { client, number, behind } => {
                write!(f, "{client}: {number} stands behind {behind}")
            }
            Self::Scattered { client, partitions } => write!(f, "{client}: in the partitions {partitions:?}"),
            Self::Repeated { client, number, records } => {
                write!(f, "{client}: {number} was stored {records} times")
            }
            Self::Renamed { client, number, ids } => write!(f, "{client}: {number} has the IDs {ids:?}"),
            Self::Foreign { entry, why } => write!(f, "a record {why}: {entry:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NORMAL: &str = "readings";
    const IN_ORDER: &str = "orderMsg2mq-readings";

    /// A fleet of one device `d`; each number: times sent, and how far its acks came.
    fn ledger(qos: u8, parent: &str, numbers: &[(u32, Got)]) -> Ledger {
        let role =
            Role { client_id: "d".into(), version: crate::Version::V3, qos, parent: parent.to_owned() };
        let at = Some(Duration::from_secs(1));
        let published = numbers.iter().map(|&(times, got)| match got {
            Got::Nothing => Published { times, ..Published::default() },
            Got::Rec => Published { times, received: at, ..Published::default() },
            Got::Ack => Published { times, acked: at, ..Published::default() },
        });
        let devices = vec![Account { role, published: published.collect() }];
        Ledger { devices, lasted: Duration::from_secs(2), connects: 1, refused: 0 }
    }

    #[derive(Clone, Copy)]
    enum Got {
        Nothing,
        Rec,
        Ack,
    }
    use Got::{Ack, Nothing, Rec};

    /// Records of `d`: partition, number, message ID; offsets as they stand.
    fn records(qos: u8, topic: &str, list: &[(u32, &str, &str)]) -> Vec<Entry> {
        let entry = |(offset, &(partition, payload, id)): (u64, &(u32, &str, &str))| Entry {
            topic: topic.to_owned(),
            partition,
            offset,
            client_id: "d".into(),
            payload: payload.to_owned(),
            message_id: id.to_owned(),
            qos,
        };
        (0..).zip(list).map(entry).collect()
    }

    fn d() -> String {
        "d".into()
    }

    #[test]
    fn what_was_acknowledged_must_be_stored_and_what_was_not_may() {
        let check = |qos, numbers: &[(u32, Got)], stored: &[(u32, &str, &str)], missing: &[usize]| {
            let breaches = ledger(qos, NORMAL, numbers).check(&records(qos, NORMAL, stored), Repeats::Never);
            let wanted: Vec<Breach> =
                missing.iter().map(|&number| Breach::Missing { client: d(), number }).collect();
            assert_eq!(breaches, wanted, "QoS {qos}, {stored:?}");
        };
        let both = [(0, "0", "a"), (2, "1", "b")];
        check(1, &[(1, Ack), (1, Ack)], &both, &[]);
        check(1, &[(1, Ack), (1, Ack)], &both[..1], &[1]);
        check(1, &[(1, Ack), (1, Ack)], &[], &[0, 1]);
        check(1, &[(1, Ack), (1, Nothing)], &both[..1], &[]);
        check(1, &[(1, Ack), (1, Nothing)], &both, &[]);
        check(2, &[(1, Rec), (1, Ack)], &both, &[]);
        check(2, &[(1, Rec), (1, Nothing)], &[], &[0]);
    }

    #[test]
    fn only_under_an_ordered_parent_first_records_stand_in_order_in_one_partition() {
        let check = |parent, stored: &[(u32, &str, &str)], wanted: &[Breach]| {
            let ledger = ledger(1, parent, &[(2, Ack), (2, Ack), (2, Ack)]);
            assert_eq!(ledger.check(&records(1, parent, stored), Repeats::OfQos1), wanted, "{stored:?}");
        };
        let swapped = [(0, "0", "a"), (0, "2", "c"), (0, "1", "b")];
        let behind = |number, behind| Breach::Disorder { client: d(), number, behind };
        check(IN_ORDER, &[(0, "0", "a"), (0, "1", "b"), (0, "2", "c")], &[]);
        check(IN_ORDER, &swapped, &[behind(1, 2)]);
        check(NORMAL, &swapped, &[]);
        check(IN_ORDER, &[(0, "2", "c"), (0, "0", "a"), (0, "1", "b")], &[behind(1, 2)]);
        check(IN_ORDER, &[(0, "2", "c"), (0, "1", "b"), (0, "0", "a")], &[behind(0, 1), behind(0, 2)]);
        let again = [(0, "0", "a"), (0, "1", "b"), (0, "0", "d"), (0, "1", "e"), (0, "2", "c")];
        check(IN_ORDER, &again, &[]);
        let scattered = [(0, "0", "a"), (1, "1", "b"), (0, "2", "c")];
        check(IN_ORDER, &scattered, &[Breach::Scattered { client: d(), partitions: [0, 1].into() }]);
        check(NORMAL, &scattered, &[]);
    }

    #[test]
    fn repeats_are_right_only_where_the_run_explains_them() {
        let check = |qos, times, repeats, ids: &[&str], repeated: bool, renamed: bool| {
            let stored: Vec<(u32, &str, &str)> = ids.iter().map(|id| (0, "0", *id)).collect();
            let breaches =
                ledger(qos, NORMAL, &[(times, Ack)]).check(&records(qos, NORMAL, &stored), repeats);
            let mut wanted = Vec::new();
            if repeated {
                wanted.push(Breach::Repeated { client: d(), number: 0, records: ids.len() });
            }
            if renamed {
                let ids = ids.iter().map(|id| (*id).to_owned()).collect();
                wanted.push(Breach::Renamed { client: d(), number: 0, ids });
            }
            assert_eq!(breaches, wanted, "QoS {qos}, sent {times} times, {repeats:?}, {ids:?}");
        };
        check(1, 1, Repeats::Never, &["a"], false, false);
        check(1, 2, Repeats::Never, &["a", "b"], true, false);
        check(2, 2, Repeats::Never, &["a", "a"], true, false);
        check(1, 2, Repeats::OfQos1, &["a", "b"], false, false);
        check(1, 1, Repeats::OfQos1, &["a", "a"], true, false);
        check(2, 2, Repeats::OfQos1, &["a", "a"], true, false);
        check(1, 1, Repeats::SameId, &["a", "a", "a"], false, false);
        check(1, 2, Repeats::SameId, &["a", "b", "a", "b"], false, false);
        check(1, 1, Repeats::SameId, &["a", "b"], false, true);
        check(2, 2, Repeats::SameId, &["a", "a"], false, false);
        check(2, 2, Repeats::SameId, &["a", "b"], false, true);
        check(2, 2, Repeats::OfQos1, &["a", "b"], true, true);
    }

    #[test]
    fn a_record_that_no_device_sent_is_a_breach() {
        let right = || records(1, NORMAL, &[(0, "0", "a")]).remove(0);
        let check = |entry: Entry, why: &'static str| {
            let breaches =
                ledger(1, NORMAL, &[(1, Nothing)]).check(std::slice::from_ref(&entry), Repeats::SameId);
            assert_eq!(breaches, [Breach::Foreign { entry, why }]);
        };
        check(Entry { client_id: "e".into(), ..right() }, "of no device");
        check(Entry { payload: "x".into(), ..right() }, "not a number");
        check(Entry { payload: "1".into(), ..right() }, "never sent");
        check(Entry { topic: IN_ORDER.into(), ..right() }, "under another parent");
        check(Entry { qos: 2, ..right() }, "of another QoS");
        check(Entry { message_id: String::new(), ..right() }, "without a message ID");
        assert!(ledger(1, NORMAL, &[(1, Nothing)]).ensure_kept(&[right()], Repeats::Never).is_ok());
        let lost = ledger(1, NORMAL, &[(1, Ack)]).ensure_kept(&[], Repeats::Never).unwrap_err();
        assert!(lost.to_string().contains("d: 0"), "{lost}");
    }

    #[test]
    fn acks_over_time_show_rate_and_pauses() {
        let seconds = Duration::from_secs_f64;
        let mut ledger = ledger(1, NORMAL, &[(1, Ack); 6]);
        ledger.lasted = seconds(9.5);
        for (published, at) in ledger.devices[0].published.iter_mut().zip([0.5, 1.0, 1.5, 6.0, 6.5, 8.0]) {
            published.acked = Some(seconds(at));
        }
        assert_eq!(ledger.acks_per_second(), [1, 2, 0, 0, 0, 0, 2, 0, 1, 0]);
        let check = |from, until, pause, began, rate: f64| {
            let (from, until) = (seconds(from), seconds(until));
            assert_eq!(ledger.longest_pause(from, until), (seconds(pause), seconds(began)));
            assert!((ledger.rate(from, until) - rate).abs() < 0.01);
        };
        check(0.0, 9.0, 4.5, 1.5, 6.0 / 9.0);
        check(0.0, 2.5, 1.0, 1.5, 1.2);
        check(2.0, 5.0, 3.0, 2.0, 0.0);
        check(6.2, 9.0, 1.5, 6.5, 2.0 / 2.8);
    }
}
