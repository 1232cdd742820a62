//! Two nodes' machines over a wire that loses, repeats and overtakes frames, on a clock that a test moves.

use std::sync::Arc;

use mqtt_proto::{
    codec::QoS,
    message::{Message, MessageId, Millis},
    topic::Filter,
};
use parking_lot::Mutex;

use super::{
    link::{Frame, Item},
    machine::{Effect, Machine, TICK},
};
use crate::log::{AppendSink, Completion, Outcome};

const BEGIN: Millis = 1_000_000;

/// Notes what it is told, by token.
#[derive(Default)]
struct Told(Mutex<Vec<u64>>);

impl AppendSink for Told {
    fn appended(&self, token: u64, _: Outcome) {
        self.0.lock().push(token);
    }
}

struct Pair {
    now: Millis,
    machines: [Machine; 2],
    /// What each has got, in order.
    got: [Vec<Arc<Item>>; 2],
    accused: [Vec<u64>; 2],
    told: Arc<Told>,
    under_way: Vec<(Millis, Frame)>,
    random: fastrand::Rng,
    /// Of a hundred frames.
    lost: u32,
    frozen: [bool; 2],
    positions: [u64; 2],
}

impl Pair {
    fn new(lost: u32) -> Pair {
        let mut pair = Pair {
            now: BEGIN,
            machines: [Machine::new(1, BEGIN), Machine::new(2, BEGIN)],
            got: Default::default(),
            accused: Default::default(),
            told: Arc::default(),
            under_way: Vec::new(),
            random: fastrand::Rng::with_seed(1),
            lost,
            frozen: [false; 2],
            positions: [0; 2],
        };
        for who in 0..2 {
            pair.act(who, |machine, now, effects| machine.list(now, &[1, 2], &[0], effects));
        }
        pair.run(2000);
        pair
    }

    fn done(&self, token: u64) -> Completion {
        Completion { sink: self.told.clone(), token }
    }

    fn is_told(&self, token: u64) -> bool {
        self.told.0.lock().contains(&token)
    }

    fn act(&mut self, who: usize, act: impl FnOnce(&mut Machine, Millis, &mut Vec<Effect>)) {
        let mut effects = Vec::new();
        act(&mut self.machines[who], self.now, &mut effects);
        for effect in effects {
            match effect {
                Effect::Send(frame) => {
                    let times = if self.random.u32(0..10) == 0 { 2 } else { 1 };
                    for _ in 0..times {
                        if self.random.u32(0..100) >= self.lost {
                            let at = self.now + self.random.u64(1..80);
                            self.under_way.push((at, frame.clone()));
                        }
                    }
                }
                Effect::Apply(_, item) => self.got[who].push(item),
                Effect::Silent(peer) => self.accused[who].push(peer),
                Effect::Done(done) => done.sink.appended(done.token, Outcome::Durable(0)),
                Effect::Forget(_) => {}
            }
        }
    }

    /// Lets time pass.
    fn run(&mut self, millis: Millis) {
        let until = self.now + millis;
        while self.now < until {
            self.now += TICK / 10;
            let now = self.now;
            let positions = self.positions;
            let due: Vec<_> = self.under_way.extract_if(.., |(at, _)| *at <= now).collect();
            for (_, frame) in due {
                let who = usize::try_from(frame.to).unwrap() - 1;
                if !self.frozen[who] {
                    self.act(who, |machine, now, effects| {
                        machine.take(now, frame, |_| positions[who], effects);
                    });
                }
            }
            for who in 0..2 {
                if !self.frozen[who] && self.now.is_multiple_of(TICK) {
                    self.act(who, |machine, now, effects| machine.tick(now, |_| positions[who], effects));
                }
            }
        }
    }

    fn send(&mut self, number: u64) {
        let id = MessageId { boot: 1, counter: number };
        let message = Arc::new(Message::new(id, 0, "t", b"", QoS::AtLeastOnce, false));
        let done = self.done(number);
        self.act(0, |machine, now, effects| {
            assert!(machine.message(now, 2, &message, false, Some(done)));
            machine.flush(now, effects);
        });
    }
}

#[test]
fn messages_come_in_order_and_once_whatever_the_wire_does() {
    for lost in [0, 10, 50] {
        let mut pair = Pair::new(lost);
        for number in 1..=200 {
            pair.send(number);
            pair.run(20);
        }
        pair.run(20_000);
        let numbers = pair.got[1].iter().filter_map(|item| match &**item {
            Item::Message { message, .. } => Some(message.id.counter),
            _ => None,
        });
        assert!(numbers.eq(1..=200), "lost {lost}");
        assert!((1..=200).all(|number| pair.is_told(number)), "lost {lost}");
    }
}

#[test]
fn a_subscription_is_active_once_the_peer_knows_it_or_can_have_no_lease() {
    let filter = Filter::parse("a/#").unwrap();
    // Milliseconds until it must not be active yet, and until it must, if the peer is frozen, and if it reads no log.
    for (frozen, mark, not_before, latest) in
        [(false, false, 0, 300), (true, false, 1000, 3500), (false, true, 1000, 3500)]
    {
        let mut pair = Pair::new(0);
        assert!(pair.machines[0].is_fresh(pair.now) && pair.machines[1].is_fresh(pair.now));
        pair.frozen[1] = frozen;
        let done = pair.done(1);
        pair.act(0, |machine, now, effects| {
            machine.filter(now, &filter, true);
            machine.wait_active(now, mark.then_some((0, 7)), done, effects);
        });
        pair.run(not_before);
        assert!(not_before == 0 || !pair.is_told(1));
        let mut waited = not_before;
        while !pair.is_told(1) {
            pair.run(10);
            waited += 10;
            assert!(waited <= latest, "frozen {frozen}, mark {mark}");
        }
        // From then on the peer does not route without it.
        pair.frozen[1] = false;
        for _ in 0..500 {
            let knows = match mark {
                true => pair.positions[1] >= 7,
                false => pair.got[1].iter().any(|item| matches!(&**item, Item::Filter { .. })),
            };
            assert!(knows || !pair.machines[1].is_fresh(pair.now), "frozen {frozen}, mark {mark}");
            pair.run(10);
        }
        pair.positions[1] = 7;
        pair.run(1000);
        assert!(pair.machines[1].is_fresh(pair.now));
    }
}

#[test]
fn a_node_that_was_stopped_itself_accuses_nobody_and_is_accused() {
    let mut pair = Pair::new(0);
    pair.frozen[1] = true;
    pair.run(5000);
    assert!(pair.accused[0].contains(&2));
    pair.frozen[1] = false;
    pair.run(1000);
    assert!(pair.accused[1].is_empty());
}

#[test]
fn who_waits_for_a_peer_that_is_gone_is_told() {
    let mut pair = Pair::new(0);
    pair.frozen[1] = true;
    pair.send(1);
    pair.run(2500);
    assert!(!pair.is_told(1) && !pair.machines[0].is_fresh(pair.now));
    pair.act(0, |machine, now, effects| machine.list(now, &[1], &[0], effects));
    assert!(pair.is_told(1) && pair.machines[0].is_fresh(pair.now));
}
