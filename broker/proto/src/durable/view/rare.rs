//! A list that is mostly empty, and then takes no more than a pointer.

use std::ops::{Deref, DerefMut};

#[derive(Debug)]
#[expect(clippy::box_collection, reason = "see the module")]
pub(super) struct Rare<T>(Option<Box<Vec<T>>>);

impl<T> Default for Rare<T> {
    fn default() -> Self {
        Rare(None)
    }
}

impl<T> Deref for Rare<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.0.as_deref().map_or(&[], Vec::as_slice)
    }
}

impl<T> DerefMut for Rare<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.0.as_deref_mut().map_or(&mut [], Vec::as_mut_slice)
    }
}

impl<T> Rare<T> {
    pub(super) fn push(&mut self, value: T) {
        self.0.get_or_insert_default().push(value);
    }

    /// Keeps what it is told to, in order, and gives what goes to `gone`.
    pub(super) fn retain(&mut self, mut keeps: impl FnMut(&T) -> bool, gone: impl FnMut(T)) {
        if let Some(all) = &mut self.0 {
            all.extract_if(.., |value| !keeps(value)).for_each(gone);
            if all.is_empty() {
                self.0 = None;
            }
        }
    }
}
