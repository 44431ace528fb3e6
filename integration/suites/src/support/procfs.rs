//! What `/proc` says of this process, of memory and of interrupts.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::PAGE;

/// A write to it makes the counts of `/proc/vmstat` exact.
const REFRESH: &str = "/proc/sys/vm/stat_refresh";

/// Names of this process's threads, those that the kernel has made included.
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

/// Threads that io_uring has made for requests that it could not submit in the caller's context.
pub(crate) fn io_workers() -> Result<Vec<String>> {
    let mut names = threads()?;
    names.retain(|name| name.starts_with("iou-wrk"));
    Ok(names)
}

/// Lines of `/proc/self/smaps` for the mapping that begins at `address`; the first is the one that
/// `/proc/self/maps` has too.
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

/// The bytes of a field in kB.
pub(crate) fn kilobytes(text: &str) -> Result<usize> {
    let number = text.trim().trim_end_matches("kB").trim();
    let number: usize = number
        .parse()
        .with_context(|| format!("{text} is no size"))?;
    Ok(number << 10)
}

/// Objects in use, all objects, and bytes of an object in a cache that `/proc/slabinfo` lists.
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
        _ => anyhow::bail!("/proc/slabinfo has no counts for {name}: {line}"),
    }
}

/// Number of pages that are pinned for this process, or were allocated for it, until it says
/// otherwise.
pub(crate) fn locked_pages() -> Result<usize> {
    Ok(kilobytes_of("/proc/self/status", "VmPin")? / PAGE)
}

/// Number of pages that the whole system has allocated since it was started.
pub(crate) fn pages_allocated() -> Result<usize> {
    let vmstat = fs::read_to_string("/proc/vmstat").context("/proc/vmstat")?;
    let mut sum = 0;
    for line in vmstat.lines() {
        if let Some((name, count)) = line.split_once(' ')
            && name.starts_with("pgalloc_")
        {
            sum += count.parse::<usize>().with_context(|| line.to_owned())?;
        }
    }
    Ok(sum)
}

/// Bytes of memory that nothing uses.
pub(crate) fn free_memory() -> Result<usize> {
    kilobytes_of("/proc/meminfo", "MemFree")
}

/// A field in kB of such a file, in bytes.
fn kilobytes_of(path: &str, name: &str) -> Result<usize> {
    let text = fs::read_to_string(path).with_context(|| path.to_owned())?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .with_context(|| format!("{path} has no {name}"))?;
    kilobytes(value)
}

/// Interrupts of a virtio device so far: each queue has one of its own, or all share one, which
/// other devices may use too.
pub(crate) fn interrupts(device: &str) -> Result<u64> {
    let table = fs::read_to_string("/proc/interrupts").context("/proc/interrupts")?;
    let cpus = table
        .lines()
        .next()
        .unwrap_or("")
        .split_whitespace()
        .count();
    let queue = format!("{device}-");
    let belongs = |line: &&str| {
        line.split([' ', ','])
            .any(|word| word == device || word.starts_with(&queue))
    };
    ensure!(
        table.lines().any(|line| belongs(&line)),
        "{device} has no interrupt in {table}"
    );
    let mut sum = 0;
    for line in table.lines().filter(belongs) {
        for number in line.split_whitespace().skip(1).take(cpus) {
            sum += number.parse::<u64>()?;
        }
    }
    Ok(sum)
}

/// Number of pages that are pinned for DMA, in the whole system.
pub(crate) fn pinned_pages() -> Result<i64> {
    // Each CPU keeps its share of the counts for up to a second; this has them all added up.
    if let Err(error) = fs::write(REFRESH, "1")
        && error.kind() != std::io::ErrorKind::NotFound
    {
        // A kernel for one CPU has no such file, and needs none.
        return Err(error).context(REFRESH);
    }
    let vmstat = fs::read_to_string("/proc/vmstat").context("/proc/vmstat")?;
    let count = |name: &str| counter(&vmstat, name);
    Ok(count("nr_foll_pin_acquired")? - count("nr_foll_pin_released")?)
}

fn counter(vmstat: &str, name: &str) -> Result<i64> {
    vmstat
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .with_context(|| format!("the kernel counts no {name}"))?
        .parse()
        .with_context(|| format!("{name} in /proc/vmstat"))
}

#[cfg(test)]
mod tests {
    use super::counter;

    #[test]
    fn counters_are_found_by_their_whole_name() {
        let text = "nr_foll_pin_acquired_x 1\nnr_foll_pin_acquired 12\n";
        assert_eq!(counter(text, "nr_foll_pin_acquired").unwrap(), 12);
        assert!(counter(text, "nr_foll_pin").is_err());
    }
}
