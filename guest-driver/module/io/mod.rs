// SPDX-License-Identifier: GPL-2.0

//! Life of a read: the call, its pages, its requests, the queue, the completion.

pub(crate) mod busy_poll;
pub(crate) mod completion;
pub(crate) mod device;
mod durable;
pub(crate) mod file;
pub(crate) mod inline_copy;
pub(crate) mod queue;
pub(crate) mod request;
pub(crate) mod submit;
pub(crate) mod transfer;
