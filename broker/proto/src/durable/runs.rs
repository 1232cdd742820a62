//! The process runs that have begun, as their ticks say, and which of two of one node is the later.
//!
//! The order of the ticks in the log would not tell it: one that shows again behind its successor's, its first copy taken by
//! compaction, is met by a later reader in the wrong order. So each tick has a number, above those of all runs of the same
//! node that were there before it.

use super::record::Boot;

/// See the module.
#[derive(Debug, Default)]
pub struct Runs(Vec<Run>);

#[derive(Debug)]
struct Run {
    boot: Boot,
    node: Box<str>,
    number: u64,
}

impl Runs {
    /// A tick was read.
    pub fn began(&mut self, boot: Boot, node: &str, number: u64) {
        match self.0.iter_mut().find(|run| run.boot == boot) {
            // It found another beside it, and took a higher number.
            Some(run) => run.number = run.number.max(number),
            None => self.0.push(Run { boot, node: node.into(), number }),
        }
    }

    /// A tick was deleted.
    pub fn gone(&mut self, boot: Boot) {
        self.0.retain(|run| run.boot != boot);
    }

    /// The number of a run whose tick was read.
    pub fn number(&self, boot: Boot) -> Option<u64> {
        self.of(boot).map(|run| run.number)
    }

    /// A number above those of all other runs of a node.
    pub fn next_number(&self, node: &str, boot: Boot) -> u64 {
        let others = self.0.iter().filter(|run| *run.node == *node && run.boot != boot);
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
        let is_replaced = |run: &&Run| self.0.iter().any(|later| run.is_before(later));
        self.0.iter().filter(is_replaced).map(|run| run.boot)
    }

    fn of(&self, boot: Boot) -> Option<&Run> {
        self.0.iter().find(|run| run.boot == boot)
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
        ticks.iter().for_each(|&(boot, number)| runs.began(boot, if boot == 9 { "b" } else { "a" }, number));
        runs
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
    fn a_run_begins_above_all_others_of_its_node() {
        let known = runs(&[(5, 4), (3, 7), (9, 20)]);
        assert_eq!(known.next_number("a", 1), 8);
        assert_eq!(known.next_number("a", 3), 5);
        assert_eq!(known.next_number("c", 1), 1);
        assert!(known.is_earlier(5, 3) && !known.is_earlier(3, 5) && !known.is_earlier(5, 9));
        assert!(known.is_of(9, "b") && !known.is_of(9, "a") && !known.is_of(8, "a"));
    }
}
