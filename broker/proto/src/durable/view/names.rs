//! Names that many sessions have in common, each kept once.

use std::{collections::HashSet, sync::Arc};

use foldhash::fast::FixedState;

use crate::durable::record::Name;

#[derive(Debug, Default)]
pub(super) struct Names {
    known: HashSet<Name, FixedState>,
    /// How many there may be until it is looked which are still in use.
    tidy_at: usize,
}

impl Names {
    /// Makes this name one with others like it.
    pub(super) fn share(&mut self, name: &mut Name) {
        if let Some(known) = self.known.get(name) {
            *name = known.clone();
            return;
        }
        if self.known.len() >= self.tidy_at {
            self.known.retain(|name| Arc::strong_count(name) > 1);
            self.tidy_at = 2 * self.known.len() + 16;
        }
        self.known.insert(name.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_are_one_and_those_that_nobody_has_go() {
        let mut names = Names::default();
        let (mut first, mut second) = (Name::new("a".into()), Name::new("a".into()));
        names.share(&mut first);
        names.share(&mut second);
        assert!(Arc::ptr_eq(&first, &second));
        for number in 0..10_000 {
            names.share(&mut Name::new(number.to_string().into()));
        }
        assert!(names.known.len() < 100, "{}", names.known.len());
        assert!(names.known.contains(&first));
    }
}
