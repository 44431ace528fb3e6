//! No source file imports another one that imports it, directly or through others.
//!
//! Imports are read from the text: `use` declarations, and paths that begin with `crate::`,
//! `super::` or a child module. A re-exported name counts as an import of the file that defines it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// The crates without circles, by the folder of their root file.
const CRATES: [&str; 9] = [
    "device/src",
    "guest-driver/module",
    "guest-driver/vdma/src",
    "integration/agent/src",
    "integration/counter/src",
    "integration/demo/src",
    "integration/src",
    "integration/suites/src",
    "protocol/src",
];

/// Path of a module from its crate's root, which is the empty one.
type Module = Vec<String>;

/// The source files of a crate, without comments and inline unit tests.
type Sources = BTreeMap<Module, String>;

/// A name in a module, and the path that it is imported from.
struct Import {
    name: String,
    path: Vec<String>,
    is_public: bool,
}

fn read(folder: &Path, module: &[String], sources: &mut Sources) {
    for entry in fs::read_dir(folder).expect("cannot list a folder") {
        let path = entry.expect("cannot list a folder").path();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let mut inside = module.to_vec();
        if path.is_dir() {
            inside.push(stem.into_owned());
            read(&path, &inside, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let is_root = module.is_empty() && (stem == "lib" || stem == "main");
            if !is_root && stem != "mod" {
                inside.push(stem.into_owned());
            }
            let text = code_of(&fs::read_to_string(&path).expect("cannot read a file"));
            // A crate with a library and a program has two root files.
            sources.entry(inside).or_default().push_str(&text);
        }
    }
}

/// `text` without comments and without an inline module of unit tests.
fn code_of(text: &str) -> String {
    let text = text
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or(text);
    text.lines()
        .map(|line| line.split("//").next().unwrap_or(line))
        .flat_map(|line| [line, "\n"])
        .collect()
}

/// The paths that a tree of imports (`a::{b, c::d as e}`) stands for, with the names that they get.
fn expand(prefix: &[String], tree: &str, found: &mut Vec<(String, Vec<String>)>) {
    let tree = tree.trim();
    if let Some((head, rest)) = tree.split_once('{') {
        let mut inside = prefix.to_vec();
        inside.extend(segments(head));
        let list = rest.rsplit_once('}').map_or(rest, |(list, _)| list);
        for part in split_list(list) {
            expand(&inside, part, found);
        }
        return;
    }
    let (path, alias) = match tree.split_once(" as ") {
        Some((path, alias)) => (path, Some(alias.trim().to_owned())),
        None => (tree, None),
    };
    let mut all = prefix.to_vec();
    all.extend(segments(path));
    if all.len() > 1 && all.last().is_some_and(|last| last == "self") {
        all.pop();
    }
    if let Some(name) = alias.or_else(|| all.last().cloned()) {
        found.push((name, all));
    }
}

fn segments(path: &str) -> impl Iterator<Item = String> {
    path.split("::")
        .map(|segment| segment.trim().to_owned())
        .filter(|segment| !segment.is_empty())
}

/// Splits at the commas that are not in braces.
fn split_list(list: &str) -> Vec<&str> {
    let mut depth = 0;
    list.split(|c| {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    })
    .filter(|part| !part.trim().is_empty())
    .collect()
}

/// The imports of a source, and its text without them.
fn imports(code: &str) -> (Vec<Import>, String) {
    let mut imports = Vec::new();
    let mut rest = String::new();
    for statement in code.split_inclusive(';') {
        let start = statement.rfind("use ").filter(|start| {
            let before = statement[..*start].rsplit('\n').next().unwrap_or_default();
            before.trim().is_empty() || before.trim().starts_with("pub")
        });
        let Some(start) = start else {
            rest.push_str(statement);
            continue;
        };
        let before = &statement[..start];
        let is_public = before.trim_end().ends_with(['b', ')']);
        rest.push_str(before);
        let mut found = Vec::new();
        let tree = statement[start + "use ".len()..].trim_end_matches(';');
        expand(&[], tree, &mut found);
        imports.extend(found.into_iter().map(|(name, path)| Import {
            name,
            path,
            is_public,
        }));
    }
    (imports, rest)
}

/// Paths in the code itself that begin with `crate`, `super`, a child module or an imported name.
fn inline_paths(code: &str, imports: &[Import], children: &[&String]) -> Vec<Vec<String>> {
    let part = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let whole = |word: &str| {
        let path: Vec<String> = segments(word).collect();
        let first = path.first()?;
        if first == "crate" || first == "super" || children.contains(&first) {
            return Some(path);
        }
        let import = imports.iter().find(|import| import.name == *first)?;
        let mut whole = import.path.clone();
        whole.extend_from_slice(&path[1..]);
        Some(whole)
    };
    code.split(|c| !part(c))
        .filter(|word| word.contains("::"))
        .filter_map(whole)
        .collect()
}

/// Makes `path`, as `module` writes it, one from the root; `None` for another crate's.
fn from_root(sources: &Sources, module: &[String], path: &[String]) -> Option<Vec<String>> {
    let mut base = module.to_vec();
    let mut rest = path;
    match rest.first()?.as_str() {
        "crate" => {
            base.clear();
            rest = &rest[1..];
        }
        "self" => rest = &rest[1..],
        "super" => {}
        first => {
            let mut child = module.to_vec();
            child.push(first.to_owned());
            let is_folder = |known: &Module| known.starts_with(&child);
            sources.keys().any(is_folder).then_some(())?;
        }
    }
    while rest.first().is_some_and(|first| first == "super") {
        base.pop();
        rest = &rest[1..];
    }
    base.extend(rest.iter().cloned());
    Some(base)
}

/// The module whose file defines what `path` from the root names.
fn definer(sources: &Sources, path: &[String], depth: usize) -> Module {
    let mut module = path.to_vec();
    while !module.is_empty() && !sources.contains_key(&module) {
        module.pop();
    }
    if let (Some(name), Some(code)) = (path.get(module.len()), sources.get(&module)) {
        let (imports, _) = imports(code);
        for import in imports.iter().filter(|import| import.is_public) {
            let is_it = import.name == *name || import.name == "*" && !defines(code, name);
            if is_it && depth < 8 {
                let mut target = import.path.clone();
                if import.name == "*" {
                    target.pop();
                    target.push(name.clone());
                }
                if let Some(target) = from_root(sources, &module, &target) {
                    return definer(sources, &target, depth + 1);
                }
            }
        }
    }
    module
}

/// Whether `code` defines an item called `name`.
fn defines(code: &str, name: &str) -> bool {
    [
        "fn", "struct", "enum", "trait", "const", "static", "type", "union",
    ]
    .iter()
    .any(|kind| code.contains(&format!("{kind} {name}")))
}

/// The modules that each module imports from.
fn graph(sources: &Sources) -> BTreeMap<Module, BTreeSet<Module>> {
    let root = sources.get(&Module::new()).map_or("", String::as_str);
    let edges = |(module, code): (&Module, &String)| {
        let children: Vec<&String> = sources
            .keys()
            .filter(|known| known.len() > module.len() && known.starts_with(module))
            .map(|known| &known[module.len()])
            .collect();
        let (imports, rest) = imports(code);
        let targets = imports
            .iter()
            .filter(|import| !import.is_public)
            .map(|import| import.path.clone())
            .chain(inline_paths(&rest, &imports, &children))
            .filter_map(|path| from_root(sources, module, &path))
            // What is used of an imported module is seen where it is used.
            .filter(|path| !sources.contains_key(path))
            .map(|path| (definer(sources, &path, 0), path))
            // Macros and other folders define further names in a root file.
            .filter(|(target, path)| !target.is_empty() || defines(root, &path[0]))
            .map(|(target, _)| target)
            .filter(|target| target != module)
            .collect();
        (module.clone(), targets)
    };
    sources.iter().map(edges).collect()
}

/// The imports that are part of a circle, as text.
fn circles(sources: &Sources) -> Vec<String> {
    let graph = graph(sources);
    let reaches = |from: &Module, to: &Module| {
        let mut seen = BTreeSet::from([from.clone()]);
        let mut next = vec![from.clone()];
        while let Some(module) = next.pop() {
            for target in graph.get(&module).into_iter().flatten() {
                if target == to {
                    return true;
                }
                if seen.insert(target.clone()) {
                    next.push(target.clone());
                }
            }
        }
        false
    };
    let shown = |module: &Module| format!("crate::{}", module.join("::"));
    graph
        .iter()
        .flat_map(|(from, targets)| targets.iter().map(move |to| (from, to)))
        .filter(|(from, to)| reaches(to, from))
        .map(|(from, to)| format!("{} imports {}", shown(from), shown(to)))
        .collect()
}

#[test]
fn no_files_import_each_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate is in a workspace");
    let mut findings = Vec::new();
    for folder in CRATES {
        let mut sources = Sources::new();
        read(&root.join(folder), &[], &mut sources);
        assert!(sources.len() > 1, "{folder} has no sources");
        findings.extend(
            circles(&sources)
                .into_iter()
                .map(|circle| format!("{folder}: {circle}")),
        );
    }
    assert!(
        findings.is_empty(),
        "imports in circles:\n  {}",
        findings.join("\n  ")
    );
}

#[test]
fn circles_are_found_through_folders_and_reexports() {
    let sources = |files: &[(&str, &str)]| -> Sources {
        files
            .iter()
            .map(|(module, code)| (segments(module).collect(), code_of(code)))
            .collect()
    };
    let straight = [
        ("", "mod a; mod b;\nfn main() { a::run(); }"),
        ("a", "use crate::b::{C, self};\nfn run() {}"),
        ("b", "mod c;\npub(crate) use c::C;\npub(crate) struct D;"),
        (
            "b::c",
            "use std::fs;\n// use crate::a::run;\npub(crate) struct C;",
        ),
    ];
    assert_eq!(circles(&sources(&straight)), Vec::<String>::new());
    let mut circular = straight;
    circular[3].1 = "use super::super::a::run;\npub(crate) struct C;";
    let found = circles(&sources(&circular));
    assert_eq!(
        found,
        [
            "crate::a imports crate::b::c",
            "crate::b::c imports crate::a"
        ]
    );
    circular[3].1 = "pub(crate) struct C;\nfn f() { crate::a::run() }";
    assert_eq!(circles(&sources(&circular)).len(), 2);
}
