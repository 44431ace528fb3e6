//! Lazy mappings, and the cache attribute of lazy and eager ones.

mod cache;
mod faults;
