//! The guest's kernel: which one, its files, its tree, and the driver's module built for it.

pub(crate) mod choice;
mod debug;
pub(crate) mod files;
pub(crate) mod module;
mod source;
pub(crate) mod stock;
mod tree;
