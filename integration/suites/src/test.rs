//! The tests, as `#[guest_test]` registers them.

use anyhow::{Context as _, Result};
use guest_agent::Needs;

use crate::suites;

/// A test: succeeds by returning, fails by returning an error or by panicking.
pub(crate) struct Test {
    /// Path of its module; the last part is its suite.
    module: &'static str,
    /// Name within its suite.
    name: &'static str,
    /// Line of its definition.
    line: u32,
    /// The test itself, in a process of its own.
    pub(crate) run: fn() -> Result<()>,
    /// The guest that it needs.
    pub(crate) needs: fn() -> Needs,
}

inventory::collect!(Test);

impl Test {
    /// Called by `#[guest_test]` alone.
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

    fn suite(&self) -> &'static str {
        self.module.rsplit("::").next().unwrap_or(self.module)
    }
}

/// All tests: the suites in their order, the tests of each as its file defines them.
pub(crate) fn all() -> Result<Vec<&'static Test>> {
    let mut tests = inventory::iter::<Test>
        .into_iter()
        .map(|test| {
            let suite = test.suite();
            let place = suites::ORDER.iter().position(|known| *known == suite);
            let place = place.with_context(|| format!("suites::ORDER lacks {suite}"))?;
            Ok((place, test.line, test))
        })
        .collect::<Result<Vec<_>>>()?;
    tests.sort_by_key(|(place, line, _)| (*place, *line));
    Ok(tests.into_iter().map(|(_, _, test)| test).collect())
}

/// The test of this name.
pub(crate) fn find(name: &str) -> Result<&'static Test> {
    all()?
        .into_iter()
        .find(|test| test.name() == name)
        .with_context(|| format!("there is no test {name}; `guest-suites list` shows all"))
}

/// The error of a test that cannot run here; it counts as skipped, with this reason.
#[derive(Debug)]
pub(crate) struct Skip(pub(crate) String);

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_plain() {
        let mut seen = HashSet::new();
        for test in all().unwrap() {
            let name = test.name();
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_:".contains(c);
            assert!(name.chars().all(plain), "{name}");
            assert!(find(&name).is_ok(), "{name}");
            assert!(seen.insert(name.clone()), "{name} twice");
        }
    }

    #[test]
    fn every_suite_has_tests() {
        let suites: HashSet<&str> = all().unwrap().iter().map(|test| test.suite()).collect();
        for suite in suites::ORDER {
            assert!(suites.contains(suite), "no test of {suite} is registered");
        }
    }
}
