//! Two nodes on one log, a link between them or none, and a session on one of them that is in no log.

use mqtt_proto::{codec::QoS, message::MessageId, topic::FilterRequest};
use tokio::{
    sync::oneshot::{self, error::TryRecvError},
    task::AbortHandle,
    time::Instant,
};

use super::*;
use crate::{
    log::sim::{SimLog, cluster::Cluster, still::Still},
    outside::Outside,
    process::make_node,
    router::Options,
    session::{log::Place, mailbox::Mailbox},
    simulation::world,
};

struct Pair {
    from: Arc<Node>,
    to: Arc<Node>,
    /// Of the session on the other node.
    mailbox: Arc<Mailbox>,
    tasks: Vec<AbortHandle>,
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Pair {
    async fn new() -> Pair {
        let cluster = Cluster::new(fastrand::Rng::with_seed(1), Box::new(|_, _, _| {}));
        let outside = Outside { simulated: Some(Still::new(cluster.clone())), mistake: None };
        let mut tasks = Vec::new();
        let mut nodes = Vec::new();
        for name in ["a", "b"] {
            let log = SimLog::new(cluster.clone(), outside.clone(), fastrand::Rng::with_seed(2), 10_000);
            let place = Place { node: name, partitions: 1, shared: true };
            let made = make_node(outside.clone(), log, place, &world::config(10, 1000), &world::acl()).await;
            let Ok(Ok(node)) = made else { panic!("no node") };
            tasks.extend(
                crate::server::background(&node).into_iter().map(|task| tokio::spawn(task).abort_handle()),
            );
            nodes.push(node);
        }
        let [from, to] = <[_; 2]>::try_from(nodes).unwrap_or_else(|_| panic!("two nodes"));
        // Who is not known is over.
        let known = async {
            while !from.sessions.others().contains_key(&to.boot) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(10), known).await.unwrap();
        let mailbox = to.registry.new_mailbox();
        mailbox.go_online();
        let options = Options {
            qos: QoS::ExactlyOnce,
            no_local: false,
            retain_as_published: false,
            subscription_id: None,
        };
        to.router
            .subscribe(&FilterRequest::parse("t/#").unwrap(), &mailbox, options, false, u64::MAX)
            .unwrap();
        Pair { from, to, mailbox, tasks }
    }

    fn relay(node: &Node) -> &Relay {
        node.relay.as_ref().unwrap()
    }

    /// Passes on a message with this number, to the other node and to these besides.
    fn pass(&self, number: u64, more: &[Boot]) -> oneshot::Receiver<Outcome> {
        let id = MessageId { boot: 7, counter: number };
        let message = Message::new(id, 0, "t/1", number.to_string().as_bytes(), QoS::AtLeastOnce, false);
        let to = [&[self.to.boot], more].concat();
        let (done, outcome) = Completion::awaited();
        Self::relay(&self.from).pass(&Arc::new(message), &to, None, self.from.wall(), done);
        outcome
    }

    fn join(&self) -> Standing {
        let taken = Self::relay(&self.to).taken_of(self.from.boot).get();
        Relay::join(&self.from, self.to.boot, taken).unwrap()
    }

    /// Brings what the link holds.
    async fn carry(&self, link: &Standing) {
        while let Some(batch) = link.batch() {
            Self::relay(&self.to).take_linked(&self.to, self.from.boot, &batch).await.unwrap();
        }
    }

    /// Says what was taken.
    fn tell(&self, link: &Standing) {
        link.taken(Self::relay(&self.to).taken_of(self.from.boot).get());
    }

    /// What the session has got since it was asked last.
    fn got(&self) -> Vec<u64> {
        let mut got = Vec::new();
        self.mailbox.take(usize::MAX, usize::MAX, &mut got);
        let number = |payload: &[u8]| std::str::from_utf8(payload).unwrap().parse().unwrap();
        got.iter().map(|delivery| number(delivery.message.payload())).collect()
    }

    /// Waits until that many records for other nodes were read.
    async fn read_to(&self, number: u64) {
        let taken = Self::relay(&self.to).taken_of(self.from.boot);
        timeout(Duration::from_secs(10), taken.reach(number)).await.unwrap();
    }

    fn through_log(&self) -> u64 {
        Self::relay(&self.from).handing.through_log.load(Ordering::Relaxed)
    }
}

#[tokio::test(start_paused = true)]
async fn a_publisher_is_answered_once_the_other_node_has_its_message_and_the_log_is_not_asked() {
    let pair = Pair::new().await;
    let link = pair.join();
    let (mut one, mut other) = (pair.pass(1, &[]), pair.pass(2, &[]));
    assert_eq!(one.try_recv(), Err(TryRecvError::Empty));
    pair.carry(&link).await;
    assert_eq!(pair.got(), [1, 2]);
    assert_eq!(one.try_recv(), Err(TryRecvError::Empty));
    pair.tell(&link);
    assert_eq!((one.try_recv(), other.try_recv()), (Ok(Outcome::Durable(0)), Ok(Outcome::Durable(0))));
    assert_eq!(pair.through_log(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_a_link_that_breaks_has_not_confirmed_goes_through_the_log_and_comes_once() {
    let pair = Pair::new().await;
    let link = pair.join();
    let first = pair.pass(1, &[]);
    pair.carry(&link).await;
    let second = pair.pass(2, &[]);
    drop(link);
    let third = pair.pass(3, &[]);
    for outcome in [first, second, third] {
        assert!(matches!(outcome.await, Ok(Outcome::Durable(_))));
    }
    pair.read_to(3).await;
    assert_eq!((pair.got(), pair.through_log()), (vec![1, 2, 3], 3));
    // The next one takes over where the log has come to.
    let link = pair.join();
    let mut fourth = pair.pass(4, &[]);
    pair.carry(&link).await;
    pair.tell(&link);
    assert_eq!((pair.got(), fourth.try_recv()), (vec![4], Ok(Outcome::Durable(0))));
    assert_eq!(pair.through_log(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_message_for_several_nodes_is_done_with_once_all_have_it_by_whichever_way() {
    let pair = Pair::new().await;
    let link = pair.join();
    let mut outcome = pair.pass(1, &[5, 6]);
    pair.carry(&link).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!((outcome.try_recv(), pair.through_log()), (Err(TryRecvError::Empty), 2));
    pair.tell(&link);
    assert!(matches!(outcome.await, Ok(Outcome::Durable(_))));
    assert_eq!(pair.got(), [1]);
}

#[test]
fn the_worst_outcome_is_told_when_the_last_is_known() {
    use Outcome::{Broken, Durable, Refused};
    let check = |peers: usize, outcomes: &[(usize, Outcome)], expected: Option<Outcome>| {
        let (done, mut told) = Completion::awaited();
        let parts = Parts::new(peers, done);
        outcomes.iter().for_each(|(count, outcome)| parts.settle(*count, *outcome));
        assert_eq!(told.try_recv().ok(), expected, "{peers} {outcomes:?}");
    };
    check(1, &[(1, Durable(7))], Some(Durable(0)));
    check(2, &[(1, Durable(7))], None);
    check(3, &[(2, Durable(7)), (1, Durable(0))], Some(Durable(0)));
    check(3, &[(2, Broken), (1, Durable(0))], Some(Broken));
    check(3, &[(1, Refused), (1, Broken), (1, Durable(0))], Some(Refused));
}

#[tokio::test(start_paused = true)]
async fn a_node_is_cut_off_if_another_was_in_touch_all_the_time_that_it_was_not() {
    let pair = Pair::new().await;
    // From here on it reads nothing.
    pair.tasks.iter().for_each(AbortHandle::abort);
    let (relay, began) = (Pair::relay(&pair.from), Instant::now());
    let after = async |seconds: u64, says: bool, expected: bool| {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        if says {
            relay.peer_is_in_touch("b");
        }
        assert_eq!(relay.cut_off(began).is_some(), expected, "{:?} after", began.elapsed());
    };
    after(9, false, false).await;
    for _ in 0..6 {
        after(1, true, false).await;
    }
    after(1, true, true).await;
    after(3, false, false).await;
    // Who comes back after an outage for both is no reason to go.
    after(9, true, false).await;
}
