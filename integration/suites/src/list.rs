//! The list of all tests.

use anyhow::{Context as _, Result};

use crate::{suites, test::Test};

/// All tests: the suites in their order, the tests of a suite as its file defines them.
pub(crate) fn all() -> Result<Vec<&'static Test>> {
    let mut tests = inventory::iter::<Test>
        .into_iter()
        .map(|test| {
            let suite = test.suite();
            let place = suites::ORDER.iter().position(|known| *known == suite);
            let place = place.with_context(|| format!("suites::ORDER lacks {suite}"))?;
            Ok(((place, test.path(), test.line), test))
        })
        .collect::<Result<Vec<_>>>()?;
    tests.sort_by_key(|(place, _)| *place);
    Ok(tests.into_iter().map(|(_, test)| test).collect())
}

/// The test of this name.
pub(crate) fn find(name: &str) -> Result<&'static Test> {
    all()?
        .into_iter()
        .find(|test| test.name() == name)
        .with_context(|| format!("there is no test {name}; `guest-suites list` shows all"))
}

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
