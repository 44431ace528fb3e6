// SPDX-License-Identifier: GPL-2.0

//! What ties a value to a call.

use core::marker::PhantomData;

/// Ties a value to one call: lifetimes of two calls do not mix.
pub(super) type CallMarker<'a> = PhantomData<fn(&'a ()) -> &'a ()>;
