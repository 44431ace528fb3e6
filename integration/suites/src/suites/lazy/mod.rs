//! Lazy mappings, and what they have in common with others.

mod cache;
mod faults;
