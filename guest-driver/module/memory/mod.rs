// SPDX-License-Identifier: GPL-2.0

//! Device memory in the BAR, and what addresses the pages of a buffer have on their way to it.

pub(crate) mod bar;
pub(crate) mod explain;
