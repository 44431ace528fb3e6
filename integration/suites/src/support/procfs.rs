//! What the kernel tells of this process and of memory.

use std::fs;

use anyhow::{Context as _, Result};

/// Names of this process's threads, the kernel's own ones included.
pub(crate) fn threads() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir("/proc/self/task").context("/proc/self/task")? {
        let path = entry.context("/proc/self/task")?.path().join("comm");
        // A thread may end while they are listed.
        if let Ok(name) = fs::read_to_string(path) {
            names.push(name.trim_end().to_owned());
        }
    }
    Ok(names)
}

/// Threads that io_uring has made for requests that it could not do in the caller's context.
pub(crate) fn io_workers() -> Result<Vec<String>> {
    let mut names = threads()?;
    names.retain(|name| name.starts_with("iou-wrk"));
    Ok(names)
}

/// Lines of `/proc/self/smaps` for the mapping that begins at `address`: the line of
/// `/proc/self/maps` first.
pub(crate) fn smaps(address: usize) -> Result<Option<Vec<String>>> {
    let text = fs::read_to_string("/proc/self/smaps").context("/proc/self/smaps")?;
    let start = format!("{address:x}-");
    let mut lines = text.lines().skip_while(|line| !line.starts_with(&start));
    let Some(first) = lines.next() else {
        return Ok(None);
    };
    let header = |line: &str| {
        line.split_once('-')
            .is_some_and(|(low, _)| is_hexadecimal(low))
    };
    let rest = lines.take_while(|line| !header(line));
    Ok(Some(
        std::iter::once(first)
            .chain(rest)
            .map(str::to_owned)
            .collect(),
    ))
}

fn is_hexadecimal(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The value of a field such as `Rss:` in lines of smaps.
pub(crate) fn field<'a>(lines: &'a [String], name: &str) -> Result<&'a str> {
    lines
        .iter()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
        .with_context(|| format!("smaps has no {name}"))
}

/// A field in kB of smaps or `/proc/meminfo`, in bytes.
pub(crate) fn kilobytes(text: &str) -> Result<usize> {
    let number = text.trim().trim_end_matches("kB").trim();
    let number: usize = number
        .parse()
        .with_context(|| format!("{text} is no size"))?;
    Ok(number << 10)
}

/// The line of `/proc/slabinfo` for a cache: objects in use, objects, and bytes of an object.
pub(crate) fn slab(name: &str) -> Result<Option<(u64, u64, u64)>> {
    let text = fs::read_to_string("/proc/slabinfo").context("/proc/slabinfo")?;
    let Some(line) = text
        .lines()
        .find(|line| line.split_whitespace().next() == Some(name))
    else {
        return Ok(None);
    };
    let numbers: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .map_while(|word| word.parse().ok())
        .collect();
    match numbers.as_slice() {
        [used, all, size, ..] => Ok(Some((*used, *all, *size))),
        _ => anyhow::bail!("the line of {name} in /proc/slabinfo is strange: {line}"),
    }
}
