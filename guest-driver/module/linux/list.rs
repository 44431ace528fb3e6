// SPDX-License-Identifier: GPL-2.0

//! A list that needs no memory of its own: each element has the next.

/// What can be in a [`Stack`]: something owned, with a place for the next.
pub(crate) trait Linked: Sized {
    /// Puts `next` into the place, which is empty.
    fn set_next(&mut self, next: Option<Self>);

    /// Empties the place.
    fn take_next(&mut self) -> Option<Self>;
}

/// A list to which elements are added, and from which they are taken, at the front.
pub(crate) struct Stack<T: Linked> {
    first: Option<T>,
    len: usize,
}

impl<T: Linked> Stack<T> {
    #[inline]
    pub(crate) const fn new() -> Self {
        Self {
            first: None,
            len: 0,
        }
    }

    /// Elements in the list.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(crate) fn push(&mut self, mut element: T) {
        element.set_next(self.first.take());
        self.first = Some(element);
        self.len += 1;
    }

    #[inline]
    pub(crate) fn pop(&mut self) -> Option<T> {
        let mut element = self.first.take()?;
        self.first = element.take_next();
        self.len -= 1;
        Some(element)
    }

    /// The list in the reverse order: what was pushed first comes first.
    #[inline]
    pub(crate) fn reversed(mut self) -> Self {
        let mut reversed = Self::new();
        while let Some(element) = self.pop() {
            reversed.push(element);
        }
        reversed
    }
}

impl<T: Linked> Drop for Stack<T> {
    /// Drops one element after the other: each within its predecessor would take stack for all of
    /// them.
    #[inline]
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}
