// SPDX-License-Identifier: GPL-2.0

//! One wrapper for each facility of the kernel that the kernel crate has no abstraction for: unsafe
//! code is inside, what the modules above call is safe.

pub(crate) mod anon_file;
pub(crate) mod bindings;
pub(crate) mod blk_plug;
pub(crate) mod bounce;
mod call_marker;
pub(crate) mod capability;
pub(crate) mod chardev;
pub(crate) mod clock;
pub(crate) mod compat;
pub(crate) mod cpu;
pub(crate) mod delay;
pub(crate) mod eventfd;
pub(crate) mod io_memory;
pub(crate) mod iov_iter;
pub(crate) mod list;
mod mm;
pub(crate) mod page;
pub(crate) mod page_list;
pub(crate) mod page_runs;
pub(crate) mod rcu;
pub(crate) mod scatterlist;
pub(crate) mod slab;
pub(crate) mod spinlock;
pub(crate) mod system;
pub(crate) mod tracepoints;
mod transmute;
pub(crate) mod unload;
pub(crate) mod uring_cmd;
pub(crate) mod vma;
pub(crate) mod vmalloc;
pub(crate) mod wait;
pub(crate) mod workqueue;
