//! The process runs that have begun, as their ticks say, and which of two of one node is the later.
//!
//! The order of the ticks in the log would not tell it: one that shows again behind its successor's, its first copy taken by
//! compaction, is met by a later reader in the wrong order. So each tick has a number, above those of all runs of the same
//! node that were there before it.

use std::collections::BTreeSet;

use super::record::Boot;

/// See the module.
#[derive(Debug, Default)]
pub struct Runs {
    known: Vec<Run>,
    /// Those that were said to be over, known or not: what says so may be met first.
    down: BTreeSet<Boot>,
}

#[derive(Debug)]
struct Run {
    boot: Boot,
    node: Box<str>,
    number: u64,
    shared: bool,
}

/// A run that is not over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Current<'a> {
    pub boot: Boot,
    pub node: &'a str,
    /// It lets others serve devices from the same log.
    pub shared: bool,
}

impl Runs {
    /// A tick was read.
    pub fn began(&mut self, boot: Boot, node: &str, number: u64, shared: bool) {
        match self.known.iter_mut().find(|run| run.boot == boot) {
            // It found another beside it, and took a higher number.
            Some(run) => run.number = run.number.max(number),
            None => self.known.push(Run { boot, node: node.into(), number, shared }),
        }
    }

    /// A tick was deleted.
    pub fn gone(&mut self, boot: Boot) {
        self.known.retain(|run| run.boot != boot);
    }

    /// Somebody said that a run is over.
    pub fn went_down(&mut self, boot: Boot) {
        self.down.insert(boot);
    }

    /// What said so was deleted.
    pub fn forget_down(&mut self, boot: Boot) {
        self.down.remove(&boot);
    }

    /// Runs that were said to be over of which nothing else is left: they are over without it.
    pub fn downs_of_unknown(&self) -> impl Iterator<Item = Boot> {
        self.down.iter().copied().filter(|boot| self.of(*boot).is_none())
    }

    /// The number of a run whose tick was read.
    pub fn number(&self, boot: Boot) -> Option<u64> {
        self.of(boot).map(|run| run.number)
    }

    /// A number above those of all other runs of a node.
    pub fn next_number(&self, node: &str, boot: Boot) -> u64 {
        let others = self.known.iter().filter(|run| *run.node == *node && run.boot != boot);
        others.map(|run| run.number).max().unwrap_or(0).saturating_add(1)
    }

    pub fn is_of(&self, boot: Boot, node: &str) -> bool {
        self.of(boot).is_some_and(|run| *run.node == *node)
    }

    /// Whether both are of one node, and the first is the earlier.
    pub fn is_earlier(&self, boot: Boot, than: Boot) -> bool {
        self.of(boot).zip(self.of(than)).is_some_and(|(run, than)| run.is_before(than))
    }

    /// The runs that a later one of their node follows.
    pub fn replaced(&self) -> impl Iterator<Item = Boot> {
        let is_replaced = |run: &&Run| self.known.iter().any(|later| run.is_before(later));
        self.known.iter().filter(is_replaced).map(|run| run.boot)
    }

    /// Whether a run is over: a later one has its node's name, it was said to be, or it was replaced so long ago that nothing tells
    /// of it any more.
    pub fn is_over(&self, boot: Boot) -> bool {
        self.of(boot).is_none_or(|run| self.has_ended(run))
    }

    /// The runs that are not over.
    pub fn current(&self) -> impl Iterator<Item = Current<'_>> {
        let current = self.known.iter().filter(|run| !self.has_ended(run));
        current.map(|Run { boot, node, shared, .. }| Current { boot: *boot, node, shared: *shared })
    }

    fn has_ended(&self, run: &Run) -> bool {
        self.down.contains(&run.boot) || self.known.iter().any(|later| run.is_before(later))
    }

    fn of(&self, boot: Boot) -> Option<&Run> {
        self.known.iter().find(|run| run.boot == boot)
    }
}

impl Run {
    /// Two that began without knowing of each other may have one number.
    fn is_before(&self, later: &Run) -> bool {
        self.node == later.node && (self.number, self.boot) < (later.number, later.boot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Boots in the order in which this reader meets their ticks, each with its number, all of one node but 9.
    fn runs(ticks: &[(Boot, u64)]) -> Runs {
        let mut runs = Runs::default();
        ticks
            .iter()
            .for_each(|&(boot, number)| runs.began(boot, if boot == 9 { "b" } else { "a" }, number, true));
        runs
    }

    fn current(runs: &Runs) -> Vec<(Boot, &str)> {
        runs.current().map(|run| (run.boot, run.node)).collect()
    }

    #[test]
    fn the_later_of_two_runs_is_known_in_whatever_order_their_ticks_are_met() {
        let check = |ticks: &[(Boot, u64)], replaced: &[Boot]| {
            let runs = runs(ticks);
            let mut found: Vec<Boot> = runs.replaced().collect();
            found.sort_unstable();
            assert_eq!(found, replaced, "{ticks:?}");
        };
        check(&[(5, 1)], &[]);
        check(&[(5, 1), (3, 2)], &[5]);
        // `1 2 1`, of which compaction took the first.
        check(&[(3, 2), (5, 1)], &[5]);
        check(&[(9, 1), (5, 1), (3, 2)], &[5]);
        // It was begun once more with a higher number, and what it had first shows again.
        check(&[(5, 1), (3, 1), (3, 2), (3, 1)], &[5]);
        check(&[(5, 1), (3, 1)], &[3]);
    }

    #[test]
    fn a_run_is_over_once_anybody_says_so_whichever_is_met_first() {
        let mut known = runs(&[(5, 1), (9, 1)]);
        known.went_down(5);
        known.went_down(7);
        known.began(7, "c", 1, true);
        assert_eq!(current(&known), [(9, "b")]);
        assert!(known.downs_of_unknown().next().is_none());
        known.gone(7);
        assert_eq!(known.downs_of_unknown().collect::<Vec<_>>(), [7]);
        known.forget_down(7);
        assert!(known.is_over(7) && known.is_over(5));
    }

    #[test]
    fn a_run_begins_above_all_others_of_its_node() {
        let known = runs(&[(5, 4), (3, 7), (9, 20)]);
        assert_eq!(known.next_number("a", 1), 8);
        assert_eq!(known.next_number("a", 3), 5);
        assert_eq!(known.next_number("c", 1), 1);
        assert!(known.is_earlier(5, 3) && !known.is_earlier(3, 5) && !known.is_earlier(5, 9));
        assert!(known.is_over(5) && known.is_over(8) && !known.is_over(3) && !known.is_over(9));
        assert_eq!(current(&known), [(3, "a"), (9, "b")]);
        assert!(known.is_of(9, "b") && !known.is_of(9, "a") && !known.is_of(8, "a"));
    }
}
