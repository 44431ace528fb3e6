//! What a guest boots from, beside its kernel: root file system, initial file system, programs.

pub(crate) mod initramfs;
pub(crate) mod programs;
pub(crate) mod root;
