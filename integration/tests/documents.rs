//! Checks of the documents: their links, the files, functions and tests that they name, their
//! width, and their words.
//!
//! Names in backticks are names of this project, except paths in the source tree of Linux. Files of
//! other projects are written as links.

use std::{
    collections::BTreeSet,
    fs,
    path::{Component, Path, PathBuf},
};

/// Columns that prose and comments may have.
const COLUMNS: usize = 100;

/// File names with these endings are files of this tree even without a folder before them.
const SOURCES: [&str; 4] = ["rs", "c", "h", "sh"];

/// Folders of Linux: a path that begins with one of them is a file of its source tree.
const LINUX: [&str; 9] = [
    "arch/",
    "block/",
    "drivers/",
    "fs/",
    "include/linux/",
    "io_uring/",
    "mm/",
    "net/",
    "rust/kernel/",
];

/// Endings of files that only builds make.
const PRODUCTS: [&str; 3] = [".ko", ".o", ".so"];

/// First parts of paths of code that are not this project's.
const FOREIGN_CRATES: [&str; 6] = ["std", "core", "alloc", "kernel", "libc", "rustix"];

/// The files and folders of the repository, relative to its root.
struct Tree {
    root: PathBuf,
    files: BTreeSet<PathBuf>,
    folders: BTreeSet<PathBuf>,
}

impl Tree {
    fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("the crate is in a workspace")
            .to_owned();
        let mut tree = Self {
            root,
            files: BTreeSet::new(),
            folders: BTreeSet::new(),
        };
        tree.add(Path::new(""));
        assert!(tree.files.contains(Path::new("Cargo.toml")), "an odd root");
        tree
    }

    fn add(&mut self, folder: &Path) {
        for entry in fs::read_dir(self.root.join(folder)).expect("cannot list a folder") {
            let entry = entry.expect("cannot list a folder");
            let name = entry.file_name();
            // Products of builds, and git's own files.
            let text = name.to_string_lossy();
            if ["target", ".git", "bindings_generated.rs"].contains(&&*text)
                || text.ends_with(".mod.c")
            {
                continue;
            }
            let path = folder.join(name);
            let kind = entry.file_type().expect("cannot list a folder");
            if kind.is_dir() {
                self.add(&path);
                self.folders.insert(path);
            } else if kind.is_file() {
                self.files.insert(path);
            }
        }
    }

    fn text(&self, file: &Path) -> String {
        let bytes = fs::read(self.root.join(file)).expect("cannot read a file");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn with_extension(&self, wanted: &[&str]) -> impl Iterator<Item = &Path> {
        self.files
            .iter()
            .map(PathBuf::as_path)
            .filter(move |file| wanted.iter().any(|w| file.extension() == Some(w.as_ref())))
    }

    /// The files or folders that `name` in the document `document` can mean: paths from the root,
    /// from the document's folder, or the ends of paths below that folder.
    fn named(&self, document: &Path, name: &str) -> Vec<PathBuf> {
        let folder = document.parent().unwrap_or(Path::new(""));
        let name = name.trim_end_matches('/');
        let exact = [normal(Path::new(name)), normal(&folder.join(name))];
        let module = format!("{name}.rs");
        self.files
            .iter()
            .chain(&self.folders)
            .filter(|path| {
                exact.contains(path)
                    || path.starts_with(folder) && (path.ends_with(name) || path.ends_with(&module))
            })
            .cloned()
            .collect()
    }

    /// Whether a file of the module `module` has the function `function`.
    fn has_function(&self, module: &str, function: &str) -> bool {
        self.with_extension(&["rs"])
            .filter(|file| is_of_module(file, module))
            .any(|file| defines(&self.text(file), function))
    }
}

/// Whether a Rust source is the module `module` or directly in its folder.
fn is_of_module(file: &Path, module: &str) -> bool {
    let in_folder = file.parent().is_some_and(|parent| parent.ends_with(module));
    in_folder || file.file_stem() == Some(module.as_ref())
}

/// Whether a Rust source defines `function`.
fn defines(source: &str, function: &str) -> bool {
    source.split("fn ").skip(1).any(|rest| {
        rest.strip_prefix(function)
            .is_some_and(|rest| rest.starts_with(['(', '<']))
    })
}

/// `path` without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                normal.pop();
            }
            Component::Normal(name) => normal.push(name),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    normal
}

/// The lines of a document that are not in a block of code, with their numbers.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut in_code = false;
    (1..)
        .zip(text.lines())
        .filter(|(_, line)| {
            let fence = line.trim_start().starts_with("```");
            in_code ^= fence;
            !in_code && !fence
        })
        .collect()
}

/// What stands in backticks in `line`.
fn in_backticks(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// The targets of links in `line`.
fn links(line: &str) -> impl Iterator<Item = &str> {
    let targets = line
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next());
    let definition = line
        .strip_prefix('[')
        .and_then(|rest| Some(rest.split_once("]: ")?.1.trim()));
    targets.chain(definition)
}

/// The anchor that a heading gets.
fn anchor(heading: &str) -> String {
    heading
        .trim_start_matches('#')
        .trim()
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || "-_ ".contains(*c))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

fn is_snake_case(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_lowercase())
        && word
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// Whether `word` from backticks has the form of a path in this tree.
fn is_path(word: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
    // `NAME.rs` is a placeholder, `README.md` is not.
    let placeholder = word.split('/').any(|part| {
        let (stem, extension) = part.rsplit_once('.').unwrap_or((part, ""));
        extension != "md"
            && !stem.is_empty()
            && stem.chars().all(|c| c.is_ascii_uppercase() || c == '_')
    });
    let product = PRODUCTS.iter().any(|ending| word.ends_with(ending));
    let source = Path::new(word)
        .extension()
        .is_some_and(|extension| SOURCES.iter().any(|known| extension == *known));
    word.chars().all(plain)
        && !placeholder
        && !product
        && !LINUX.iter().any(|folder| word.starts_with(folder))
        && !word.starts_with(['/', '-'])
        && (source || word.contains('/') && word.contains(|c: char| c.is_ascii_lowercase()))
}

/// What is wrong with a name of a function or test (`module::function`, `file.rs::function`).
fn wrong_function(tree: &Tree, document: &Path, name: &str) -> Option<String> {
    if let Some((file, inside)) = name.split_once(".rs::") {
        let function = inside.rsplit("::").next()?;
        if !is_snake_case(function) {
            return None;
        }
        let files = tree.named(document, &format!("{file}.rs"));
        if files.is_empty() {
            return Some(format!("there is no {file}.rs"));
        }
        let found = files.iter().any(|file| defines(&tree.text(file), function));
        return (!found).then(|| format!("{file}.rs has no fn {function}"));
    }
    let parts: Vec<&str> = name.split("::").collect();
    let [.., module, function] = parts.as_slice() else {
        return None;
    };
    if FOREIGN_CRATES.contains(&parts[0]) {
        return None;
    }
    if *function == "*" && is_snake_case(module) {
        let found = tree
            .with_extension(&["rs"])
            .any(|file| is_of_module(file, module));
        return (!found).then(|| format!("there is no module {module}"));
    }
    if !parts.iter().all(|part| is_snake_case(part)) {
        return None;
    }
    let module = if *module == "tests" && parts.len() > 2 {
        parts[parts.len() - 3]
    } else {
        module
    };
    (!tree.has_function(module, function))
        .then(|| format!("no file of a module {module} has a fn {function}"))
}

/// Fails with a line for each of `findings`.
fn expect_none(findings: &[String], what: &str) {
    assert!(findings.is_empty(), "{what}:\n  {}", findings.join("\n  "));
}

#[test]
fn links_lead_somewhere() {
    let tree = Tree::read();
    let mut findings = Vec::new();
    for document in tree.with_extension(&["md"]) {
        for (number, line) in prose(&tree.text(document)) {
            for target in links(line) {
                if target.contains("://") || target.starts_with("mailto:") {
                    continue;
                }
                let (path, fragment) = target.split_once('#').unwrap_or((target, ""));
                let folder = document.parent().unwrap_or(Path::new(""));
                let file = match path {
                    "" => document.to_owned(),
                    path => normal(&folder.join(path)),
                };
                let at = format!("{}:{number}: {target}", document.display());
                if !tree.files.contains(&file) && !tree.folders.contains(&file) {
                    findings.push(format!("{at}: there is no {}", file.display()));
                } else if !fragment.is_empty() && file.extension().is_some_and(|e| e == "md") {
                    let text = tree.text(&file);
                    let found = prose(&text)
                        .iter()
                        .any(|(_, line)| line.starts_with('#') && anchor(line) == fragment);
                    if !found {
                        findings.push(format!("{at}: there is no such section"));
                    }
                }
            }
        }
    }
    expect_none(&findings, "links that lead nowhere");
}

#[test]
fn files_and_tests_that_documents_name_exist() {
    let tree = Tree::read();
    let mut findings = Vec::new();
    let mut names = 0;
    for document in tree.with_extension(&["md"]) {
        for (number, line) in prose(&tree.text(document)) {
            for word in in_backticks(line) {
                let wrong = if word.contains("::") {
                    wrong_function(&tree, document, word)
                } else if is_path(word) {
                    let found = !tree.named(document, word).is_empty();
                    (!found).then(|| "there is no such file or folder".to_owned())
                } else {
                    continue;
                };
                names += 1;
                if let Some(wrong) = wrong {
                    findings.push(format!("{}:{number}: {word}: {wrong}", document.display()));
                }
            }
        }
    }
    expect_none(&findings, "names that documents have and the tree has not");
    assert!(names > 100, "only {names} names were found");
}

#[test]
fn documents_and_comments_are_of_one_width() {
    let tree = Tree::read();
    let mut findings = Vec::new();
    let mut check = |file: &Path, number: usize, line: &str| {
        let last = line.rsplit(' ').next().unwrap_or_default();
        let link = last.contains("](") || last.contains("://");
        let columns = line.chars().count();
        let without_link = columns - if link { last.chars().count() } else { 0 };
        if without_link > COLUMNS {
            findings.push(format!("{}:{number}: {columns} columns", file.display()));
        }
    };
    for document in tree.with_extension(&["md"]) {
        for (number, line) in prose(&tree.text(document)) {
            if !line.trim_start().starts_with('|') {
                check(document, number, line);
            }
        }
    }
    for source in tree.with_extension(&["rs"]) {
        let mut in_code = false;
        for (number, line) in (1..).zip(tree.text(source).lines()) {
            let Some(comment) = line.trim_start().strip_prefix("//") else {
                in_code = false;
                continue;
            };
            let comment = comment.trim_start_matches(['/', '!']).trim_start();
            let fence = comment.starts_with("```");
            in_code ^= fence;
            if !in_code && !fence && !comment.starts_with('|') {
                check(source, number, line);
            }
        }
    }
    expect_none(&findings, "lines that are too wide");
}

#[test]
fn words_of_a_private_vocabulary_do_not_occur() {
    // In two pieces each: this file is searched as well.
    let words = [
        concat!("look", "er"),
        concat!("look", "ers"),
        concat!("some", "body"),
        concat!("no", "body"),
        concat!("an", "ew"),
        concat!("le", "ash"),
        concat!("wa", "rd"),
        concat!("surround", "ings"),
        concat!("in va", "in"),
    ];
    let tree = Tree::read();
    let mut findings = Vec::new();
    for file in tree.with_extension(&["rs", "md", "c", "h"]) {
        for (number, line) in (1..).zip(tree.text(file).lines()) {
            let lower = line.to_lowercase();
            for word in words {
                if has_word(&lower, word) {
                    findings.push(format!("{}:{number}: {word}", file.display()));
                }
            }
        }
    }
    expect_none(
        &findings,
        "words with a better one in the field's own language",
    );
}

/// Whether `word` stands in `line` with no letter, digit or underscore beside it.
fn has_word(line: &str, word: &str) -> bool {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(start, _)| {
        !line[..start].ends_with(part_of_word)
            && !line[start + word.len()..].starts_with(part_of_word)
    })
}

#[test]
fn the_checks_can_tell_right_from_wrong() {
    let tree = Tree::read();
    let here = Path::new("integration/ARCHITECTURE.md");
    assert!(!tree.named(here, "tests/documents.rs").is_empty());
    assert!(!tree.named(here, "ci/pipeline.sh").is_empty());
    assert!(tree.named(here, "tests/no_documents.rs").is_empty());
    assert_eq!(
        wrong_function(&tree, here, "tests/documents.rs::links_lead_somewhere"),
        None
    );
    assert!(wrong_function(&tree, here, "tests/documents.rs::no_such_test").is_some());
    assert_eq!(
        wrong_function(&tree, here, "documents::links_lead_somewhere"),
        None
    );
    assert!(wrong_function(&tree, here, "documents::no_such_test").is_some());
    assert_eq!(wrong_function(&tree, here, "std::mem::swap"), None);
    assert_eq!(
        links("a [b](c.md#d) and [e](f)").collect::<Vec<_>>(),
        ["c.md#d", "f"]
    );
    assert_eq!(links("[a]: b.md").collect::<Vec<_>>(), ["b.md"]);
    assert_eq!(
        anchor("## Life of a read, in `io/`"),
        "life-of-a-read-in-io"
    );
    assert_eq!(prose("a\n```\nb\n```\nc"), [(1, "a"), (5, "c")]);
    assert!(is_path("src/host/") && is_path("jobs.rs") && !is_path("/dev/vdma0"));
    assert!(
        !is_path("--kernel")
            && !is_path("src/NAME.rs")
            && is_path("x/README.md")
            && !is_path("bench.json")
    );
    assert!(
        has_word("a word.", "word") && !has_word("words", "word") && !has_word("a_word", "word")
    );
}
