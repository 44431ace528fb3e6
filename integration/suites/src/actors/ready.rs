//! What actors and the harness agree on.

use std::{io::Write as _, time::Duration};

use anyhow::{Context as _, Result};

/// How long the guest may take to notice that the device is gone.
pub(super) const GONE: Duration = Duration::from_secs(60);

/// Tells the harness that it may act.
pub(super) fn say_ready() -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "ready")?;
    out.flush().context("cannot print")
}
