//! A test, as `#[guest_test]` registers it.

use anyhow::Result;
use guest_agent::Needs;

/// A test: succeeds by returning, fails by returning an error or by panicking.
pub(crate) struct Test {
    /// Path of its module, `crate::suites::SUITE` or one below it.
    module: &'static str,
    /// Name within its suite.
    name: &'static str,
    /// Line of its definition.
    pub(crate) line: u32,
    /// The test itself, in a process of its own.
    pub(crate) run: fn() -> Result<()>,
    /// The guest that it needs.
    pub(crate) needs: fn() -> Needs,
}

inventory::collect!(Test);

impl Test {
    /// Only `#[guest_test]` calls this.
    pub(crate) const fn new(
        module: &'static str,
        name: &'static str,
        line: u32,
        run: fn() -> Result<()>,
        needs: fn() -> Needs,
    ) -> Self {
        Self {
            module,
            name,
            line,
            run,
            needs,
        }
    }

    /// `SUITE::TEST`.
    pub(crate) fn name(&self) -> String {
        format!("{}::{}", self.suite(), self.name)
    }

    /// The module below `suites` that it is in.
    pub(crate) fn suite(&self) -> &'static str {
        self.path().split("::").next().unwrap_or_default()
    }

    /// Its module's path below `suites`.
    pub(crate) fn path(&self) -> &'static str {
        self.module
            .split_once("::suites::")
            .map_or(self.module, |(_, path)| path)
    }
}

/// Ends a test that cannot run in this guest; it counts as skipped, with this reason.
pub(crate) fn skip<T>(reason: impl Into<String>) -> Result<T> {
    Err(Skip(reason.into()).into())
}

/// The error of a test that cannot run in this guest, and the reason.
#[derive(Debug)]
pub(crate) struct Skip(String);

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}
