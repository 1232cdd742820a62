//! Leases: as long as this process run holds one of each other, it knows every subscription that any of them has told somebody
//! of, and routes at once; who has given one tells nobody of a subscription before who holds it has read it in the log.
//!
//! Without input, output or a clock: times are milliseconds of one that is steady and counts on while the process stands still.
//! Promises:
//!
//! - a lease ends for who holds it before it does for who gave it, whichever of them stands still in between;
//! - who was never heard of, as it has begun since, is waited for as if it had been given one: [`Held::until`] needs a look at
//!   the whole log that is not older than a lease;
//! - no round waits for a peer that does not read on longer than a lease and [`OWED`].

use std::collections::{BTreeMap, BTreeSet};

use mqtt_proto::{durable::record::Boot, message::Millis};

/// How long one counts for who has given it, from then on.
pub(crate) const LEASE: Millis = 2000;
/// The same for who holds it, from when it was asked for: clocks do not run at one speed.
const HELD: Millis = LEASE - LEASE / 10;
/// Who has not read for so long what somebody waits to be told of gets no further one.
const OWED: Millis = 1000;

/// What this process run holds.
#[derive(Debug, Default)]
pub(crate) struct Held {
    /// Until when, of whom.
    leases: BTreeMap<Boot, Millis>,
    /// Of whom one is needed, unless that has to be found out.
    listed: Option<BTreeSet<Boot>>,
    /// Somebody finds that out.
    is_looked_for: bool,
    /// This process run is over.
    is_over: bool,
    /// Until when what was seen of the log is young enough.
    looked: Millis,
}

impl Held {
    /// Process runs have begun, or are over: nothing is held until it is known which there are.
    pub(crate) fn relist(&mut self) {
        (self.listed, self.is_looked_for) = (None, false);
    }

    /// It is looked from now on which there are.
    pub(crate) fn look(&mut self) {
        self.is_looked_for = true;
    }

    /// These are there besides this one, as of a time since [`Self::look`]; nothing if they may have changed in between.
    pub(crate) fn list(&mut self, others: BTreeSet<Boot>) {
        if !self.is_looked_for {
            return;
        }
        self.leases.retain(|boot, _| others.contains(boot));
        self.listed = Some(others);
    }

    /// This process run is over, and holds nothing any more.
    pub(crate) fn end(&mut self) {
        self.is_over = true;
    }

    /// One was given that had been asked for at this time.
    pub(crate) fn lease(&mut self, of: Boot, asked: Millis) {
        let until = self.leases.entry(of).or_default();
        *until = asked.saturating_add(HELD).max(*until);
    }

    /// Nothing is heard of that one any more.
    pub(crate) fn lost(&mut self, of: Boot) {
        self.leases.remove(&of);
    }

    /// All that stood in the log at this time has been read.
    pub(crate) fn looked(&mut self, at: Millis) {
        self.looked = self.looked.max(at.saturating_add(HELD));
    }

    /// Until when what this process run knows is all that anybody was told; that it is not so now: 0.
    pub(crate) fn until(&self) -> Millis {
        let Some(listed) = self.listed.as_ref().filter(|_| !self.is_over) else { return 0 };
        let leases = listed.iter().map(|boot| self.leases.get(boot).copied().unwrap_or(0));
        leases.fold(self.looked, Millis::min)
    }

    /// Until when the last look at the whole log counts.
    pub(crate) fn looked_until(&self) -> Millis {
        self.looked
    }
}

/// What this process run has given, and who has read what somebody waits to be told of. That is asked in rounds: who waits
/// while one is under way is in the next.
#[derive(Debug)]
pub(crate) struct Given {
    peers: BTreeMap<Boot, Peer>,
    round: u64,
    /// Until when others may hold leases of each other, and not know of this process run.
    unnoticed: Millis,
}

#[derive(Debug, Default)]
struct Peer {
    /// Until when it may count on the last that it was given.
    until: Millis,
    /// The last round up to which it has read.
    read: u64,
    /// Since when it should have read further.
    owes: Option<Millis>,
}

impl Given {
    /// Of a process run that has begun, as everybody can read as of `now`.
    pub(crate) fn new(now: Millis) -> Given {
        Given { peers: BTreeMap::new(), round: 0, unnoticed: now.saturating_add(LEASE) }
    }

    /// Gives one, unless that peer does not keep up.
    pub(crate) fn give(&mut self, to: Boot, now: Millis) -> bool {
        let peer = self.peers.entry(to).or_default();
        if peer.read < self.round {
            // It may not have been asked, as it held nothing then.
            peer.owes.get_or_insert(now);
        }
        let keeps_up = peer.owes.is_none_or(|since| now.saturating_sub(since) < OWED);
        if keeps_up {
            peer.until = now.saturating_add(LEASE);
        }
        keeps_up
    }

    /// Whether anybody may have to be asked before somebody is told of a subscription.
    pub(crate) fn may_bind(&self, now: Millis) -> bool {
        self.unnoticed > now || self.peers.values().any(|peer| peer.until > now)
    }

    /// Asks all whether they have read what this process run has read until now; returns the number of the round.
    pub(crate) fn ask(&mut self, now: Millis) -> u64 {
        self.round += 1;
        for peer in self.peers.values_mut().filter(|peer| peer.until > now) {
            peer.owes.get_or_insert(now);
        }
        self.round
    }

    /// That peer has read what was read here when this round began.
    pub(crate) fn read(&mut self, by: Boot, round: u64) {
        let latest = self.round;
        let peer = self.peers.entry(by).or_default();
        peer.read = peer.read.max(round.min(latest));
        if peer.read == latest {
            peer.owes = None;
        }
    }

    /// The last round up to which that peer has read.
    pub(crate) fn read_by(&self, peer: Boot) -> u64 {
        self.peers.get(&peer).map_or(0, |peer| peer.read)
    }

    /// Until when to wait, at most, for who has not read what this round asks; nothing once all have. `others` are the process
    /// runs that there are.
    pub(crate) fn waits(&self, round: u64, others: &BTreeSet<Boot>, now: Millis) -> Option<Millis> {
        let given = self.peers.values().filter(|peer| peer.read < round).map(|peer| peer.until);
        let unnoticed = others.iter().any(|boot| self.read_by(*boot) < round).then_some(self.unnoticed);
        given.chain(unnoticed).filter(|until| *until > now).max()
    }

    /// Such peers are over, for ever: nothing more is known of them once what they were given has ended.
    pub(crate) fn forget(&mut self, is_over: impl Fn(Boot) -> bool, now: Millis) {
        self.peers.retain(|boot, peer| peer.until > now || !is_over(*boot));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boots<const N: usize>(boots: [Boot; N]) -> BTreeSet<Boot> {
        boots.into()
    }

    #[test]
    fn who_holds_a_lease_of_each_other_and_has_looked_at_the_log_knows_all() {
        let check = |act: &dyn Fn(&mut Held), expected: Millis| {
            let mut held = Held::default();
            held.look();
            held.list(boots([1, 2]));
            held.lease(1, 1000);
            held.lease(2, 1200);
            held.looked(1500);
            assert_eq!(held.until(), 2800);
            act(&mut held);
            assert_eq!(held.until(), expected);
        };
        check(&|held| held.lease(1, 1300), 3000);
        check(&|held| held.lease(1, 900), 2800);
        check(&|held| held.lost(2), 0);
        check(&|held| held.relist(), 0);
        check(
            &|held| {
                held.look();
                held.relist();
                held.list(boots([1, 2]));
            },
            0,
        );
        check(&|held| held.list(boots([1, 2, 3])), 0);
        check(&|held| held.end(), 0);
        check(&|held| held.list(boots([2])), 3000);
        check(&|held| held.list(boots([])), 3300);
        check(
            &|held| {
                held.list(boots([2]));
                held.list(boots([1, 2]));
            },
            0,
        );
        let mut held = Held::default();
        held.lease(1, 1000);
        held.looked(1000);
        assert_eq!(held.until(), 0, "it is not known who is there");
        held.look();
        held.list(boots([1]));
        assert_eq!(held.until(), 2800);
    }

    #[test]
    fn a_lease_ends_for_its_holder_first() {
        let (mut held, mut given) = (Held::default(), Given::new(0));
        held.look();
        held.list(boots([1]));
        held.looked(100_000);
        // Asked for at 5000, given 3 ms later.
        assert!(given.give(2, 5003));
        held.lease(1, 5000);
        let round = given.ask(5003);
        assert!(held.until() < given.waits(round, &boots([2]), 5003).unwrap());
    }

    #[test]
    fn nobody_is_told_before_all_who_hold_a_lease_have_read_or_it_is_over() {
        let others = boots([1, 2]);
        let mut given = Given::new(0);
        assert!(given.give(1, 10_000) && given.give(2, 10_500));
        let round = given.ask(11_000);
        assert_eq!(given.waits(round, &others, 11_000), Some(12_500));
        given.read(2, round);
        assert_eq!(given.waits(round, &others, 11_000), Some(12_000));
        assert_eq!(given.waits(round, &others, 12_000), None, "it is over");
        given.read(1, round - 1);
        assert!(given.waits(round, &others, 11_000).is_some(), "that was the round before");
        given.read(1, round);
        assert_eq!(given.waits(round, &others, 11_000), None);
    }

    #[test]
    fn who_does_not_read_on_gets_no_further_lease_until_it_does() {
        let mut given = Given::new(0);
        assert!(given.give(1, 10_000));
        let round = given.ask(10_100);
        assert!(given.give(1, 11_000), "it may be about to");
        assert!(!given.give(1, 11_100));
        assert_eq!(given.waits(round, &boots([1]), 11_100), Some(13_000));
        assert_eq!(given.waits(round, &boots([1]), 13_000), None);
        let next = given.ask(13_500);
        given.read(1, round);
        assert!(!given.give(1, 13_600));
        given.read(1, u64::MAX);
        assert!(given.give(1, 13_700));
        assert!(given.give(3, 13_700), "it has held nothing so far");
        assert!(!given.give(3, 14_700), "somebody waits for it since");
        assert_eq!(given.read_by(1), next, "nobody has read what nobody has asked");
    }

    #[test]
    fn a_node_that_has_just_begun_waits_for_all_who_may_not_know_of_it() {
        let mut given = Given::new(10_000);
        assert!(given.may_bind(11_999) && !given.may_bind(12_000));
        let round = given.ask(10_100);
        assert_eq!(given.waits(round, &boots([1, 2]), 10_100), Some(12_000));
        given.read(1, round);
        assert_eq!(given.waits(round, &boots([1, 2]), 10_100), Some(12_000));
        given.read(2, round);
        assert_eq!(given.waits(round, &boots([1, 2]), 10_100), None);
        assert_eq!(given.waits(round, &boots([]), 10_100), None, "nobody else is there");
    }

    #[test]
    fn a_peer_that_is_over_is_waited_for_as_long_as_it_may_not_know() {
        let mut given = Given::new(0);
        assert!(given.give(1, 10_000));
        let round = given.ask(10_100);
        given.forget(|_| true, 11_000);
        assert_eq!(given.waits(round, &boots([]), 11_000), Some(12_000));
        given.forget(|_| true, 12_000);
        assert_eq!(given.read_by(1), 0);
    }
}
