//! What this process run takes of what one other passes on to it. It may come by two ways, and twice: each number is taken once,
//! and none below one that was taken. Without input, output or a clock.

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    last: u64,
}

/// What is to be done with what came by a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    New,
    /// It came before.
    Known,
    /// Something is missing before it: the link can't be trusted.
    Gap,
}

impl Incoming {
    /// The last number that was taken; 0: none.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// Whether what stands in the relay under this number is new. There some may be missing: what was refused.
    pub(crate) fn through_log(&mut self, sequence: u64) -> bool {
        // Nobody counts as far as the last number: what follows it could not be told.
        let is_new = sequence > self.last && sequence < u64::MAX;
        if is_new {
            self.last = sequence;
        }
        is_new
    }

    /// The same of what came by a link. `after`: the number of what was passed on before it.
    pub(crate) fn by_link(&mut self, after: u64, sequence: u64) -> Found {
        if sequence <= self.last {
            return Found::Known;
        }
        if after > self.last || after >= sequence || sequence == u64::MAX {
            return Found::Gap;
        }
        self.last = sequence;
        Found::New
    }
}
