//! The clauses of SPEC.md: each stands in the text once, and in a table of section 10 with the
//! tests that show it, which exist.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The text before section 10, and the rows of its tables: clause and what shows it.
fn specification() -> (String, Vec<(String, String)>) {
    let text = fs::read_to_string(workspace().join("protocol/SPEC.md")).unwrap();
    let (body, conformance) = text.split_once("\n## 10 ").unwrap();
    let rows = conformance.lines().filter_map(|line| {
        let (clause, tests) = line.trim_matches(['|', ' ']).split_once(" | ")?;
        clause
            .starts_with('D')
            .then(|| (clause.to_owned(), tests.to_owned()))
    });
    (body.to_owned(), rows.collect())
}

#[test]
fn every_clause_is_in_the_text_and_in_the_table() {
    let (body, rows) = specification();
    for kind in ["DEV", "DRV"] {
        let mark = format!("**{kind}-");
        let count = body.matches(&mark).count();
        assert!(count > 10, "{count} {kind} clauses");
        for number in 1..=count {
            let clause = format!("{kind}-{number}");
            assert_eq!(
                body.matches(&format!("**{clause}**")).count(),
                1,
                "{clause} in the text"
            );
            assert_eq!(
                rows.iter().filter(|(name, _)| *name == clause).count(),
                1,
                "{clause} in the table"
            );
        }
        let listed = rows.iter().filter(|(name, _)| name.starts_with(kind));
        assert_eq!(listed.count(), count, "{kind}");
    }
}

/// The sources that can hold a test called `SUITE::NAME`: a file, or the files of a folder.
fn sources_of(suite: &str) -> Vec<PathBuf> {
    let suites = workspace().join("integration/suites/src/suites");
    let file = suites.join(suite).with_extension("rs");
    let folder = fs::read_dir(suites.join(suite)).into_iter().flatten();
    let inside = folder.map(|entry| entry.unwrap().path());
    inside
        .chain(Some(file).filter(|file| file.exists()))
        .collect()
}

#[test]
fn tests_that_the_tables_name_exist() {
    let (_, rows) = specification();
    let mut found = 0;
    for (clause, tests) in rows {
        if tests.starts_with("no test") {
            continue;
        }
        for test in tests.split(", ") {
            let name = test.trim_matches('`');
            let (file, function) = name.rsplit_once("::").unwrap();
            assert_ne!(name, test, "{clause}: {test}");
            let sources = if file.ends_with(".rs") {
                vec![workspace().join(file)]
            } else {
                sources_of(file)
            };
            let defines = |path: &PathBuf| {
                let text = fs::read_to_string(path)
                    .unwrap_or_else(|error| panic!("{clause}: {}: {error}", path.display()));
                text.contains(&format!("fn {function}("))
            };
            assert!(sources.iter().any(defines), "{clause}: {name}");
            found += 1;
        }
    }
    assert!(found > 50, "{found} tests");
}
