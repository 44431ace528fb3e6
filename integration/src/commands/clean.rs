//! `cargo vm clean`.

use anyhow::Result;

use crate::host::cache::Cache;

/// Removes the cache.
pub(crate) fn run() -> Result<u8> {
    let location = Cache::location()?;
    if Cache::remove()? {
        println!("removed {}", location.display());
    } else {
        println!("nothing to remove: {} does not exist", location.display());
    }
    Ok(0)
}
