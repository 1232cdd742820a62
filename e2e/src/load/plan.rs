//! What a run does: the command line, and the bounded plan it is parsed into.

use std::net::SocketAddr;
use std::ops::Range;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::check::Stamp;
use super::{LoadError, procfs};

/// Open files are limited to 20,000 where this runs; some are not sockets.
const MOST_CONNECTIONS: u32 = 19_000;
/// One packet fits the read buffer with room to spare.
const MOST_PAYLOAD: usize = 128 * 1024;
const LONGEST: Duration = Duration::from_secs(600);

/// The command line of `mqtt-load`.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Broker to load; a loopback address.
    #[arg(long, global = true, default_value = "127.0.0.1:1883")]
    pub addr: Loopback,
    /// Another node of the same broker, where subscribers connect; absent: where all do.
    #[arg(long, global = true)]
    pub subscribers_at: Option<Loopback>,
    /// Quality of service, published and subscribed.
    #[arg(long, global = true, default_value = "0")]
    pub qos: Qos,
    /// Messages a second over all publishers, sent on time whatever the broker does. Absent: as fast as it goes.
    #[arg(long, global = true)]
    pub rate: Option<u32>,
    /// Sleep between the messages of --rate instead of looking again at once: for who shares the core.
    #[arg(long, global = true, requires = "rate")]
    pub sleep: bool,
    /// Unacknowledged messages a publisher may have (QoS 1 and 2).
    #[arg(long, global = true, default_value_t = 20)]
    pub window: u16,
    /// Without --rate: undelivered messages a publisher may have, so that no broker's queue has to overflow.
    #[arg(long, global = true, default_value_t = 1000)]
    pub lag: u32,
    /// Bytes of payload, 16 at least.
    #[arg(long, global = true, default_value_t = 128)]
    pub payload: usize,
    /// Seconds before the measurement begins.
    #[arg(long, global = true, default_value_t = 1.0)]
    pub warmup: f64,
    /// Seconds measured.
    #[arg(long, global = true, default_value_t = 5.0)]
    pub duration: f64,
    /// Seconds after which the run is given up.
    #[arg(long, global = true, default_value_t = 60.0)]
    pub timeout: f64,
    /// Most messages published; the run ends early there.
    #[arg(long, global = true, default_value_t = 50_000_000)]
    pub messages: u32,
    /// Subscribers' sessions outlive their connections; in a storm, everyone's.
    #[arg(long, global = true)]
    pub persistent: bool,
    /// First levels of every topic.
    #[arg(long, global = true, default_value = "load")]
    pub topic: String,
    #[arg(long, global = true, requires = "password")]
    pub username: Option<String>,
    #[arg(long, global = true, requires = "username")]
    pub password: Option<String>,
    /// The broker's process, whose CPU time and memory are measured; once for each node, whose sum counts.
    #[arg(long, global = true)]
    pub pid: Vec<u32>,
    #[command(subcommand)]
    pub scene: Scene,
}

/// Who talks to whom.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum Scene {
    /// Pairs: each publisher has its own subscriber.
    P2p {
        #[arg(long, default_value_t = 50)]
        pairs: u32,
    },
    /// Many publishers, shared out evenly among few subscribers.
    FanIn {
        #[arg(long, default_value_t = 50)]
        publishers: u32,
        #[arg(long, default_value_t = 1)]
        subscribers: u32,
    },
    /// Every subscriber hears every publisher.
    FanOut {
        #[arg(long, default_value_t = 1)]
        publishers: u32,
        #[arg(long, default_value_t = 100)]
        subscribers: u32,
    },
    /// Publishers nobody listens to: what counts is the acknowledgement (give --topic a registered parent).
    Stored {
        #[arg(long, default_value_t = 50)]
        publishers: u32,
        /// Without a broker: --addr is Kafka's, and a plain producer sends it the records of as many publishers.
        #[arg(long)]
        bare: bool,
    },
    /// Connections that say nothing: the broker's memory for each.
    Idle {
        #[arg(long, default_value_t = 5000)]
        connections: u32,
    },
    /// Devices that come once, subscribe to three filters, and go: their sessions stay.
    Leave {
        #[arg(long, default_value_t = 1000)]
        sessions: u32,
        #[arg(long, default_value_t = 500)]
        at_once: u32,
    },
    /// Devices at --addr come to --subscribers-at while their connections there still stand.
    Takeover {
        #[arg(long, default_value_t = 1000)]
        sessions: u32,
        #[arg(long, default_value_t = 16)]
        at_once: u32,
    },
    /// Connect, disconnect, again.
    Connect {
        #[arg(long, default_value_t = 64)]
        at_once: u32,
    },
}

impl Scene {
    pub fn name(self) -> &'static str {
        match self {
            Self::P2p { .. } => "p2p",
            Self::FanIn { .. } => "fan-in",
            Self::FanOut { .. } => "fan-out",
            Self::Stored { bare: false, .. } => "stored",
            Self::Stored { bare: true, .. } => "bare",
            Self::Idle { .. } => "idle",
            Self::Leave { .. } => "leave",
            Self::Takeover { .. } => "takeover",
            Self::Connect { .. } => "connect",
        }
    }
}

/// A plan that can be run: bounded in connections, messages and time.
#[derive(Debug, Clone)]
pub struct Plan {
    pub(super) addr: SocketAddr,
    pub(super) subscribers_at: SocketAddr,
    pub(super) scene: Scene,
    pub(super) qos: Qos,
    pub(super) rate: Option<u32>,
    pub(super) sleep: bool,
    pub(super) window: u16,
    pub(super) lag: u32,
    pub(super) payload: usize,
    pub(super) warmup: Duration,
    pub(super) duration: Duration,
    pub(super) timeout: Duration,
    pub(super) messages: u32,
    pub(super) persistent: bool,
    pub(super) topic: String,
    pub(super) login: Option<(String, String)>,
    pub(super) pids: Vec<u32>,
}

/// Why options make no plan.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("{what} must be between {least} and {most}")]
    Range { what: &'static str, least: u64, most: u64 },
    #[error("--timeout must be longer than --warmup and --duration together, which leave no time to connect")]
    NoTime,
    #[error("a stored message needs an acknowledgement: use --qos 1 or --qos 2")]
    StoredNeedsAck,
    #[error(
        "fewer publishers than subscribers leave some with nothing to hear: use fan-out, or more publishers"
    )]
    IdleSubscriber,
    #[error(
        "--topic is a plain topic of at most 200 bytes without + and #, and names have at most 200 bytes"
    )]
    Name,
}

impl TryFrom<Options> for Plan {
    type Error = PlanError;

    fn try_from(o: Options) -> Result<Self, PlanError> {
        let seconds = |what, value: f64, least: u64| {
            let found = Duration::try_from_secs_f64(value).ok();
            found.filter(|s| *s >= Duration::from_secs(least) && *s <= LONGEST).ok_or(PlanError::Range {
                what,
                least,
                most: LONGEST.as_secs(),
            })
        };
        let plan = Self {
            addr: o.addr.0,
            subscribers_at: o.subscribers_at.unwrap_or(o.addr).0,
            scene: o.scene,
            qos: o.qos,
            rate: o.rate,
            sleep: o.sleep,
            window: o.window,
            lag: o.lag,
            payload: o.payload,
            warmup: seconds("--warmup", o.warmup, 0)?,
            duration: seconds("--duration", o.duration, 0)?,
            timeout: seconds("--timeout", o.timeout, 1)?,
            messages: o.messages,
            persistent: o.persistent,
            topic: o.topic,
            login: o.username.zip(o.password),
            pids: o.pid,
        };
        within("--payload", plan.payload as u64, Stamp::BYTES as u64, MOST_PAYLOAD as u64)?;
        within("--window", plan.window.into(), 1, u16::MAX.into())?;
        within("--lag", plan.lag.into(), 1, u32::MAX.into())?;
        within("--rate", plan.rate.unwrap_or(1).into(), 1, 10_000_000)?;
        within("the number of connections", plan.connections(), 1, MOST_CONNECTIONS.into())?;
        if plan.warmup + plan.duration >= plan.timeout {
            return Err(PlanError::NoTime);
        }
        match plan.scene {
            Scene::Stored { .. } if plan.qos == Qos::AtMostOnce => return Err(PlanError::StoredNeedsAck),
            Scene::FanIn { publishers, subscribers } if publishers < subscribers => {
                return Err(PlanError::IdleSubscriber);
            }
            _ => {}
        }
        let names = plan.login.iter().flat_map(|(user, password)| [user, password]).chain([&plan.topic]);
        if names.into_iter().any(|name| name.len() > 200)
            || plan.topic.is_empty()
            || plan.topic.contains(['+', '#', '\0'])
        {
            return Err(PlanError::Name);
        }
        Ok(plan)
    }
}

impl Plan {
    /// The publishers and subscribers that hear each other, group by group.
    pub(super) fn groups(&self) -> Vec<Group> {
        let one = |publishers, subscribers| vec![Group { publishers: 0..publishers, subscribers }];
        match self.scene {
            Scene::P2p { pairs } => {
                (0..pairs).map(|p| Group { publishers: p..p + 1, subscribers: 1 }).collect()
            }
            Scene::FanIn { publishers, subscribers } => {
                let bound =
                    |g: u32| (u64::from(publishers) * u64::from(g) / u64::from(subscribers.max(1))) as u32;
                (0..subscribers)
                    .map(|g| Group { publishers: bound(g)..bound(g + 1), subscribers: 1 })
                    .collect()
            }
            Scene::FanOut { publishers, subscribers } => one(publishers, subscribers),
            Scene::Stored { publishers, .. } => one(publishers, 0),
            Scene::Idle { .. } | Scene::Leave { .. } | Scene::Takeover { .. } | Scene::Connect { .. } => {
                Vec::new()
            }
        }
    }

    /// What each message counts for: its deliveries, or its one acknowledgement.
    pub(super) fn fan(&self) -> u32 {
        match self.scene {
            Scene::FanOut { subscribers, .. } => subscribers,
            _ => 1,
        }
    }

    /// The broker's CPU time so far, when its process is known.
    pub(super) fn broker_cpu(&self) -> Result<Option<Duration>, LoadError> {
        let each = self.pids.iter().map(|pid| procfs::cpu(&pid.to_string()));
        each.reduce(|one, other| Ok(one? + other?)).transpose()
    }

    /// The broker's resident memory, when its process is known.
    pub(super) fn broker_resident_kb(&self) -> Result<Option<u64>, LoadError> {
        let each = self.pids.iter().map(|pid| procfs::resident_kb(&pid.to_string()));
        each.reduce(|one, other| Ok(one? + other?)).transpose()
    }

    /// Name and password as CONNECT wants them.
    pub(super) fn login(&self) -> Option<(&str, &str)> {
        self.login.as_ref().map(|(user, password)| (user.as_str(), password.as_str()))
    }

    /// Connections that are open at once.
    fn connections(&self) -> u64 {
        let (a, b) = match self.scene {
            Scene::P2p { pairs } => (pairs, pairs),
            Scene::FanIn { publishers, subscribers } | Scene::FanOut { publishers, subscribers } => {
                (publishers, subscribers)
            }
            Scene::Stored { publishers, .. } => (publishers, 0),
            Scene::Idle { connections } => (connections, 0),
            Scene::Takeover { sessions, at_once } => (sessions, at_once.min(sessions)),
            Scene::Connect { at_once } | Scene::Leave { at_once, .. } => (at_once, 0),
        };
        // A side without anyone makes the scene empty, but for those that have one side.
        let empty = a == 0
            || (b == 0
                && matches!(self.scene, Scene::FanIn { .. } | Scene::FanOut { .. } | Scene::Takeover { .. }));
        if empty { 0 } else { u64::from(a) + u64::from(b) }
    }
}

/// Publishers that share their subscribers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) publishers: Range<u32>,
    pub(super) subscribers: u32,
}

/// Quality of service (MQTT 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qos {
    AtMostOnce = 0,
    AtLeastOnce = 1,
    ExactlyOnce = 2,
}

impl FromStr for Qos {
    type Err = &'static str;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "0" => Ok(Self::AtMostOnce),
            "1" => Ok(Self::AtLeastOnce),
            "2" => Ok(Self::ExactlyOnce),
            _ => Err("QoS is 0, 1 or 2"),
        }
    }
}

/// An address on this machine: the generator must never load anyone else's broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loopback(pub(super) SocketAddr);

impl FromStr for Loopback {
    type Err = &'static str;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s.parse::<SocketAddr>() {
            Ok(addr) if addr.ip().is_loopback() => Ok(Self(addr)),
            Ok(_) => Err("only loopback addresses (127.0.0.1, [::1]) may be loaded"),
            Err(_) => Err("an address is IP:PORT, as in 127.0.0.1:1883"),
        }
    }
}

fn within(what: &'static str, value: u64, least: u64, most: u64) -> Result<(), PlanError> {
    if (least..=most).contains(&value) { Ok(()) } else { Err(PlanError::Range { what, least, most }) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    fn plan(line: &str) -> Result<Plan, PlanError> {
        let words = std::iter::once("mqtt-load").chain(line.split_whitespace());
        Plan::try_from(Cli::try_parse_from(words).unwrap().options)
    }

    #[test]
    fn an_address_beyond_this_machine_is_refused() {
        let check = |addr: &str, fine: bool| assert_eq!(addr.parse::<Loopback>().is_ok(), fine, "{addr}");
        check("127.0.0.1:1883", true);
        check("127.9.9.9:1", true);
        check("[::1]:1883", true);
        check("192.168.0.1:1883", false);
        check("0.0.0.0:1883", false);
        check("[::ffff:8.8.8.8]:1883", false);
        check("localhost:1883", false);
        check("127.0.0.1", false);
    }

    #[test]
    fn a_plan_that_is_unbounded_or_empty_is_refused() {
        let check = |line: &str, fine: bool| assert_eq!(plan(line).is_ok(), fine, "{line}");
        check("p2p", true);
        check("--payload 16 --qos 2 fan-in", true);
        check("--payload 15 p2p", false);
        check("--payload 131073 p2p", false);
        check("--window 0 p2p", false);
        check("--lag 0 p2p", false);
        check("--rate 0 p2p", false);
        check("--duration 60 p2p", false);
        check("--duration 601 --timeout 602 p2p", false);
        check("--duration=-1 p2p", false);
        check("--duration NaN p2p", false);
        check("p2p --pairs 0", false);
        check("p2p --pairs 10000", false);
        check("idle --connections 19000", true);
        check("idle --connections 19001", false);
        check("fan-out --subscribers 0", false);
        check("takeover --sessions 9000", true);
        check("takeover --sessions 19000", false);
        check("takeover --at-once 0", false);
        check("fan-in --publishers 1 --subscribers 2", false);
        check("stored", false);
        check("stored --qos 1", true);
        check("stored --qos 1 --bare", true);
        check("--topic a/# p2p", false);
    }

    #[test]
    fn every_publisher_is_heard_by_the_subscribers_of_its_group() {
        let check = |line: &str, want: &[(Range<u32>, u32)]| {
            let want: Vec<_> =
                want.iter().map(|(p, s)| Group { publishers: p.clone(), subscribers: *s }).collect();
            assert_eq!(plan(line).unwrap().groups(), want, "{line}");
        };
        check("p2p --pairs 2", &[(0..1, 1), (1..2, 1)]);
        check("fan-in --publishers 5", &[(0..5, 1)]);
        check("fan-in --publishers 5 --subscribers 2", &[(0..2, 1), (2..5, 1)]);
        check("fan-out --subscribers 9", &[(0..1, 9)]);
        check("--qos 1 stored --publishers 3", &[(0..3, 0)]);
        check("idle", &[]);
    }
}
