//! One that passes on, its peers, and a relay between them: each message comes once and in order, whichever ways it takes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mqtt_proto::{durable::record::Boot, message::Millis};

use super::{
    incoming::{Found, Incoming},
    outgoing::{Outgoing, PATIENCE},
};

/// What befalls the two ways between one process run and its peers.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The next message is handed over for these peers.
    Hand(&'static [Boot]),
    /// A new link to this peer stands.
    Join(Boot),
    /// All that may goes by the link.
    Send(Boot),
    /// So many messages arrive by it.
    Arrive(Boot, usize),
    /// The peer says what it has taken.
    Tell(Boot),
    /// The link breaks; what is on its way there arrives later, or never.
    Break(Boot),
    /// So many records of the relay are read by the peer.
    Read(Boot, usize),
    /// The relay shows so many of its last records once more.
    Repeat(usize),
    /// So much time passes.
    Pass(Millis),
    /// It is broken off if it is overdue.
    Look(Boot),
    /// The peer is over.
    Over(Boot),
}
use Step::*;

#[derive(Default)]
struct World {
    outgoing: Outgoing<u32>,
    now: Millis,
    messages: u32,
    relay: Vec<(u64, Vec<Boot>, u32)>,
    peers: BTreeMap<Boot, Peer>,
    /// Messages and peers that nobody waits for any more.
    done: BTreeSet<(u32, Boot)>,
}

#[derive(Default)]
struct Peer {
    incoming: Incoming,
    wire: VecDeque<(u64, u64, u32)>,
    read: usize,
    got: Vec<u32>,
    gaps: usize,
}

impl World {
    fn step(&mut self, step: Step) {
        match step {
            Hand(to) => {
                self.messages += 1;
                let message = self.messages;
                let (sequence, logged) = self.outgoing.hand(to, 100, self.now, || message);
                if !logged.is_empty() {
                    self.log(sequence, logged, message);
                }
            }
            Join(boot) => self.outgoing.join(boot, self.peers.entry(boot).or_default().incoming.last()),
            Send(boot) => {
                while let Some(batch) = self.outgoing.batch(boot) {
                    let mut after = batch.after;
                    for (sequence, message) in batch.items {
                        self.peers.entry(boot).or_default().wire.push_back((after, sequence, message));
                        after = sequence;
                    }
                }
            }
            Arrive(boot, most) => {
                let peer = self.peers.entry(boot).or_default();
                for (after, sequence, message) in peer.wire.drain(..most.min(peer.wire.len())) {
                    match peer.incoming.by_link(after, sequence) {
                        Found::New => peer.got.push(message),
                        Found::Known => {}
                        Found::Gap => peer.gaps += 1,
                    }
                }
            }
            Tell(boot) => {
                let last = self.peers.entry(boot).or_default().incoming.last();
                let done = self.outgoing.taken(boot, last);
                self.done.extend(done.into_iter().map(|message| (message, boot)));
            }
            Break(boot) => {
                for (sequence, message) in self.outgoing.break_off(boot) {
                    self.log(sequence, vec![boot], message);
                }
            }
            Read(boot, most) => {
                let peer = self.peers.entry(boot).or_default();
                for (sequence, to, message) in self.relay.iter().skip(peer.read).take(most) {
                    peer.read += 1;
                    if to.contains(&boot) && peer.incoming.through_log(*sequence) {
                        peer.got.push(*message);
                    }
                }
            }
            Repeat(last) => self.relay.extend_from_within(self.relay.len().saturating_sub(last)..),
            Pass(time) => self.now += time,
            Look(boot) => {
                if self.outgoing.is_overdue(boot, self.now) {
                    self.step(Break(boot));
                }
            }
            Over(boot) => {
                let done = self.outgoing.forget(|other| other == boot);
                self.done.extend(done.into_iter().map(|message| (message, boot)));
            }
        }
    }

    /// It stands in the relay: who waited for that need not any more.
    fn log(&mut self, sequence: u64, to: Vec<Boot>, message: u32) {
        self.done.extend(to.iter().map(|boot| (message, *boot)));
        self.relay.push((sequence, to, message));
    }

    fn got(&self, boot: Boot) -> &[u32] {
        self.peers.get(&boot).map_or(&[], |peer| &peer.got)
    }
}

/// Plays the steps; then peer 1 has got these messages, and for these nobody waits any more on its account, and so many
/// records stand in the relay.
#[track_caller]
fn check(steps: &[Step], got: &[u32], done: &[u32], relayed: usize) {
    let mut world = World::default();
    steps.iter().for_each(|step| world.step(*step));
    let finished: Vec<u32> =
        world.done.iter().filter(|(_, boot)| *boot == 1).map(|(message, _)| *message).collect();
    assert_eq!((world.got(1), &finished[..], world.relay.len()), (got, done, relayed), "{steps:?}");
    assert_eq!(world.peers.values().map(|peer| peer.gaps).sum::<usize>(), 0, "{steps:?}");
}

const ONE: Step = Hand(&[1]);

#[test]
fn what_goes_by_the_link_is_done_with_once_the_peer_has_taken_it() {
    check(&[Join(1), ONE, ONE], &[], &[], 0);
    check(&[Join(1), ONE, ONE, Send(1), Arrive(1, 1)], &[1], &[], 0);
    check(&[Join(1), ONE, ONE, Send(1), Arrive(1, 1), Tell(1)], &[1], &[1], 0);
    check(&[Join(1), ONE, ONE, Send(1), Arrive(1, 2), Tell(1)], &[1, 2], &[1, 2], 0);
}

#[test]
fn without_a_link_all_goes_through_the_log() {
    check(&[ONE, Hand(&[1, 2]), Read(1, 9)], &[1, 2], &[1, 2], 2);
    check(&[Join(2), ONE, Hand(&[2]), Hand(&[1, 2]), Read(1, 9)], &[1, 3], &[1, 3], 2);
}

#[test]
fn what_a_broken_link_has_not_brought_goes_through_the_log_in_the_same_order_and_comes_once() {
    // Neither sent, nor arrived, nor told of.
    check(&[Join(1), ONE, ONE, Break(1), Read(1, 9)], &[1, 2], &[1, 2], 2);
    check(&[Join(1), ONE, ONE, Send(1), Break(1), ONE, Read(1, 9)], &[1, 2, 3], &[1, 2, 3], 3);
    check(&[Join(1), ONE, ONE, Send(1), Arrive(1, 1), Break(1), ONE, Read(1, 9)], &[1, 2, 3], &[1, 2, 3], 3);
    check(
        &[Join(1), ONE, ONE, Send(1), Arrive(1, 2), Tell(1), Break(1), ONE, Read(1, 9)],
        &[1, 2, 3],
        &[1, 2, 3],
        1,
    );
}

#[test]
fn what_a_broken_link_brings_late_comes_once() {
    let broken = [Join(1), ONE, ONE, Send(1), Break(1), ONE];
    check(&[&broken[..], &[Arrive(1, 9), Read(1, 9)]].concat(), &[1, 2, 3], &[1, 2, 3], 3);
    check(&[&broken[..], &[Read(1, 9), Arrive(1, 9)]].concat(), &[1, 2, 3], &[1, 2, 3], 3);
    check(&[&broken[..], &[Read(1, 1), Arrive(1, 9), Read(1, 9)]].concat(), &[1, 2, 3], &[1, 2, 3], 3);
    check(&[&broken[..], &[Read(1, 9), Repeat(2), Read(1, 9)]].concat(), &[1, 2, 3], &[1, 2, 3], 5);
}

#[test]
fn a_lost_word_of_what_was_taken_takes_the_message_through_the_log_and_the_peer_passes_it_over() {
    let taken = [Join(1), ONE, Send(1), Arrive(1, 1), Pass(PATIENCE), Look(1)];
    check(&taken, &[1], &[1], 1);
    check(&[&taken[..], &[Read(1, 9), ONE, Read(1, 9)]].concat(), &[1, 2], &[1, 2], 2);
}

#[test]
fn a_link_that_is_not_in_time_is_given_up_and_one_that_is_idle_is_not() {
    check(&[Join(1), ONE, Send(1), Pass(PATIENCE - 1), Look(1)], &[], &[], 0);
    check(&[Join(1), ONE, Pass(PATIENCE), Look(1)], &[], &[1], 1);
    check(&[Join(1), ONE, Send(1), Arrive(1, 1), Tell(1), Pass(9 * PATIENCE), Look(1), ONE], &[1], &[1], 0);
}

#[test]
fn a_new_link_waits_until_the_peer_has_taken_what_went_through_the_log() {
    let joined = [ONE, ONE, Read(1, 1), Join(1), ONE, Send(1), Arrive(1, 9)];
    check(&joined, &[1], &[1, 2], 2);
    let caught_up = [&joined[..], &[Read(1, 9), Tell(1), Send(1), Arrive(1, 9), Tell(1)]].concat();
    check(&caught_up, &[1, 2, 3], &[1, 2, 3], 2);
    // It does not for ever.
    let given_up = [&joined[..], &[Pass(PATIENCE), Look(1), Read(1, 9)]].concat();
    check(&given_up, &[1, 2, 3], &[1, 2, 3], 3);
    // The word of it may come with the link.
    check(&[ONE, Read(1, 9), Join(1), ONE, Send(1), Arrive(1, 9)], &[1, 2], &[1], 1);
}

#[test]
fn a_peer_that_is_over_owes_nothing_and_its_next_process_run_begins_anew() {
    check(&[Join(1), ONE, Send(1), ONE, Over(1)], &[], &[1, 2], 0);
    let mut world = World::default();
    for step in
        [Join(1), ONE, Send(1), Arrive(1, 1), Over(1), Join(2), Hand(&[2]), Send(2), Arrive(2, 1), Tell(2)]
    {
        world.step(step);
    }
    assert_eq!((world.got(1), world.got(2)), (&[1][..], &[2][..]));
    assert!(world.done.contains(&(1, 1)) && world.done.contains(&(2, 2)));
}

#[test]
fn a_message_goes_each_peer_s_own_way() {
    let mut world = World::default();
    for step in
        [Join(1), Hand(&[1, 2]), Hand(&[1, 2]), Send(1), Arrive(1, 9), Tell(1), Read(2, 9), Read(1, 9)]
    {
        world.step(step);
    }
    assert_eq!((world.got(1), world.got(2)), (&[1, 2][..], &[1, 2][..]));
    assert!(world.relay.iter().all(|(_, to, _)| *to == [2]), "{:?}", world.relay);
}

#[test]
fn a_link_with_something_missing_is_not_trusted() {
    let check = |last: u64, after: u64, sequence: u64, expected: Found| {
        let mut incoming = Incoming::default();
        incoming.through_log(last);
        assert_eq!(incoming.by_link(after, sequence), expected, "{last} {after} {sequence}");
        assert_eq!(incoming.last(), if expected == Found::New { sequence } else { last });
    };
    check(5, 5, 6, Found::New);
    check(5, 4, 9, Found::New);
    check(5, 4, 5, Found::Known);
    check(5, 6, 7, Found::Gap);
    check(5, 7, 7, Found::Gap);
    check(0, 0, 1, Found::New);
}

#[test]
fn batches_and_what_may_be_on_its_way_are_bounded() {
    let fill = |count: usize, bytes: usize| {
        let mut outgoing = Outgoing::default();
        outgoing.join(1, 0);
        (0..count).for_each(|_| drop(outgoing.hand(&[1], bytes, 0, || ())));
        let has_room = outgoing.has_room();
        let sizes: Vec<usize> =
            std::iter::from_fn(|| outgoing.batch(1)).map(|batch| batch.items.len()).collect();
        (has_room, sizes)
    };
    assert_eq!(fill(3, 10), (true, vec![3]));
    assert_eq!(fill(1200, 10), (true, vec![500, 500, 200]));
    assert_eq!(fill(5, 100 << 10), (true, vec![2, 2, 1]));
    assert_eq!(fill(3, 1 << 20), (true, vec![1, 1]));
    assert_eq!(fill(2, 50 << 20), (false, vec![1]));
    assert!(!fill(20_000, 1).0);
}

/// Whatever happens in whatever order: nothing comes twice or out of order, what nobody waits for any more is there or comes,
/// and once links and relay have brought what they hold, all is there.
#[test]
fn whatever_befalls_the_ways_all_comes_once_and_in_order() {
    const PEERS: [Boot; 2] = [1, 2];
    for seed in 0..3000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut world = World::default();
        let mut steps = Vec::new();
        let mut handed: BTreeMap<Boot, Vec<u32>> = BTreeMap::new();
        for _ in 0..120 {
            let boot = PEERS[random.usize(0..2)];
            let step = match random.u32(0..20) {
                0..=6 => Hand([&[1][..], &[2], &[1, 2]][random.usize(0..3)]),
                7..=8 => {
                    world.step(Break(boot));
                    Join(boot)
                }
                9..=11 => Send(boot),
                12..=13 => Arrive(boot, random.usize(0..6)),
                14..=15 => Tell(boot),
                16 => Break(boot),
                17..=18 => Read(boot, random.usize(0..6)),
                _ => [Repeat(random.usize(0..4)), Pass(PATIENCE / 2), Look(boot)][random.usize(0..3)],
            };
            if let Hand(to) = step {
                to.iter().for_each(|boot| handed.entry(*boot).or_default().push(world.messages + 1));
            }
            world.step(step);
            steps.push(step);
            for boot in PEERS {
                let got = world.got(boot);
                let all = handed.get(&boot).map_or(&[][..], |all| all);
                assert_eq!(got, &all[..got.len()], "seed {seed}: {steps:?}");
            }
        }
        for boot in PEERS {
            for step in [Send(boot), Arrive(boot, 999), Break(boot), Read(boot, 999)] {
                world.step(step);
            }
            let all = handed.get(&boot).map_or(&[][..], |all| all);
            assert_eq!(world.got(boot), all, "seed {seed}: {steps:?}");
            assert!(
                all.iter().all(|message| world.done.contains(&(*message, boot))),
                "seed {seed}: {steps:?}"
            );
            assert_eq!(world.peers[&boot].gaps, 0, "seed {seed}: {steps:?}");
        }
    }
}

#[test]
fn a_number_that_no_other_can_follow_is_taken_by_neither_way() {
    let mut incoming = Incoming::default();
    assert_eq!(incoming.by_link(0, u64::MAX), Found::Gap);
    assert!(!incoming.through_log(u64::MAX));
    assert_eq!((incoming.by_link(0, u64::MAX - 1), incoming.last()), (Found::New, u64::MAX - 1));
}
