// SPDX-License-Identifier: GPL-2.0

//! Kernel interfaces that the kernel crate has no bindings for, generated at build time.

#![allow(
    dead_code,
    improper_ctypes,
    missing_docs,
    non_camel_case_types,
    non_upper_case_globals,
    unreachable_pub,
    unsafe_op_in_unsafe_fn,
    unused_imports,
    clippy::all,
    clippy::undocumented_unsafe_blocks
)]

use kernel::{bindings::*, ffi};

include!("bindings_generated.rs");
