use std::{
    ffi::c_void,
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    ptr,
};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use serde_json::json;
use vdma::{
    Device, ExplainedPage,
    protocol::{PAGE_ANONYMOUS, PAGE_BOUNCED, PAGE_HUGE},
};

use super::output::{JSON_VERSION, Output, print_json};

const HUGE: usize = 2 << 20;

/// A kind of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Memory {
    /// Private memory without a file, in small pages
    Anonymous,
    /// Private memory without a file, in transparent huge pages
    Huge,
    /// Shared memory without a file
    Shared,
    /// A mapped file
    File,
}

/// Memory of a kind of the user's choice, mapped for this command.
struct Buffer {
    mapping: *mut c_void,
    mapped: usize,
    start: usize,
    length: usize,
}

impl Buffer {
    /// `length` bytes, the first of which is `skew` bytes into a page.
    fn new(kind: &Memory, file: Option<&PathBuf>, length: usize, skew: usize) -> Result<Self> {
        let mapped = (skew + length).next_multiple_of(HUGE) + HUGE;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let mapping = match (kind, file) {
            (Memory::File, Some(path)) => {
                let file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open(path)
                    .with_context(|| format!("cannot open {}", path.display()))?;
                let size = file.metadata().context("cannot read its size")?.len();
                ensure!(
                    size >= (skew + length) as u64,
                    "{}: {size} bytes, and {} are to be shown; choose a smaller --length",
                    path.display(),
                    skew + length
                );
                // SAFETY: A new mapping at an address of the kernel's choice replaces nothing.
                unsafe { mmap(ptr::null_mut(), mapped, access, MapFlags::SHARED, &file, 0) }
            }
            (Memory::File, None) => anyhow::bail!("--memory file needs --file FILE"),
            (Memory::Shared, _) => {
                // SAFETY: A new mapping at an address of the kernel's choice replaces nothing.
                unsafe { mmap_anonymous(ptr::null_mut(), mapped, access, MapFlags::SHARED) }
            }
            _ => {
                // SAFETY: A new mapping at an address of the kernel's choice replaces nothing.
                unsafe { mmap_anonymous(ptr::null_mut(), mapped, access, MapFlags::PRIVATE) }
            }
        }
        .context("cannot map memory")?;
        let begin = (mapping as usize).next_multiple_of(HUGE);
        let buffer = Self {
            mapping,
            mapped,
            start: if matches!(kind, Memory::File) {
                mapping as usize + skew
            } else {
                begin + skew
            },
            length,
        };
        let advice = match kind {
            Memory::Huge => Some(Advice::LinuxHugepage),
            Memory::Anonymous => Some(Advice::LinuxNoHugepage),
            _ => None,
        };
        if let Some(advice) = advice {
            // SAFETY: The range is part of the mapping. It is advice only.
            unsafe { madvise(begin as *mut c_void, mapped - HUGE, advice) }
                .context("this kernel has no transparent huge pages; choose another --memory")?;
        }
        Ok(buffer)
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: The range is inside of the mapping, which is this object's own.
        unsafe { std::slice::from_raw_parts_mut(self.start as *mut u8, self.length) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: The mapping is this object's own, and no reference into it is left.
        let _ = unsafe { munmap(self.mapping, self.mapped) };
    }
}

/// The line of `/proc/self/maps` with `address`.
fn vma_of(address: usize) -> Result<String> {
    let maps = fs::read_to_string("/proc/self/maps").context("/proc/self/maps")?;
    maps.lines()
        .find(|line| {
            let Some((range, _)) = line.split_once(' ') else {
                return false;
            };
            let Some((start, end)) = range.split_once('-') else {
                return false;
            };
            let number = |text| usize::from_str_radix(text, 16).unwrap_or(0);
            (number(start)..number(end)).contains(&address)
        })
        .map(str::to_owned)
        .with_context(|| format!("no mapping has the address {address:#x}"))
}

/// Most bytes that the driver explains in one call: 1024 pages, counted from the first page's
/// beginning.
const MAX_BYTES: usize = 4 << 20;

pub(super) struct Request<'a> {
    pub(super) device: &'a Path,
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) skew: usize,
    pub(super) memory: &'a Memory,
    pub(super) file: Option<&'a PathBuf>,
    pub(super) output: Output,
}

pub(super) fn explain(request: &Request<'_>) -> Result<()> {
    let device = Device::open(request.device)?;
    let length = usize::try_from(request.length)?;
    ensure!(length > 0, "--length is 0; there is nothing to show");
    ensure!(
        request.skew < 4096,
        "--skew is {}; it must be below 4096",
        request.skew
    );
    let reach = length.saturating_add(request.skew);
    ensure!(
        reach <= MAX_BYTES,
        "--length {length} and --skew {} are more than the 4M that can be shown; choose a smaller --length",
        request.skew
    );
    ensure!(
        request.file.is_none() || matches!(request.memory, Memory::File),
        "--file goes with --memory file; give both or neither"
    );
    let mut buffer = Buffer::new(request.memory, request.file, length, request.skew)?;
    if !matches!(request.memory, Memory::File) {
        // Memory that was never written to has no pages.
        buffer.bytes().fill(1);
    }
    let vma = vma_of(buffer.start)?;
    let pages = device.explain(buffer.bytes(), request.offset)?;
    match request.output {
        Output::Json => print_json(&json!({
            "version": JSON_VERSION,
            "vma": vma,
            "address": buffer.start,
            "length": length,
            "pages": pages.iter().map(|page| json!({
                "address": page.address,
                "length": page.length,
                "kernel_address": page.kernel_address,
                "physical_address": page.physical_address,
                "bus_address": page.bus_address,
                "offset": page.offset,
                "entry": page.entry,
                "flags": flags(page),
            })).collect::<Vec<_>>(),
        })),
        Output::Text => print_text(&vma, length, &pages),
    }
}

fn flags(page: &ExplainedPage) -> Vec<&'static str> {
    [
        (PAGE_HUGE, "huge"),
        (PAGE_ANONYMOUS, "anonymous"),
        (PAGE_BOUNCED, "bounced"),
    ]
    .into_iter()
    .filter(|(flag, _)| page.flags & flag != 0)
    .map(|(_, name)| name)
    .collect()
}

fn print_text(vma: &str, length: usize, pages: &[ExplainedPage]) -> Result<()> {
    let entries = pages.last().map_or(0, |page| page.entry + 1);
    // The line of a mapping without a file ends in a blank.
    print_line!("VMA: {}", vma.trim_end())?;
    print_line!(
        "{length} bytes: {} pages, as many scatter-gather entries before coalescing, {entries} after",
        pages.len()
    )?;
    print_line!("")?;
    print_line!(
        "{:>5} {:>18} {:>18} {:>14} {:>14} {:>10} {:>5}  flags",
        "entry",
        "user virtual",
        "kernel virtual",
        "physical",
        "bus (DMA)",
        "device",
        "bytes"
    )?;
    let mut last = None;
    for page in pages {
        let entry = if last == Some(page.entry) {
            String::new()
        } else {
            page.entry.to_string()
        };
        last = Some(page.entry);
        print_line!(
            "{entry:>5} {:>18x} {:>18x} {:>14x} {:>14x} {:>10x} {:>5}  {}",
            page.address,
            page.kernel_address,
            page.physical_address,
            page.bus_address,
            page.offset,
            page.length,
            flags(page).join(" ")
        )?;
    }
    Ok(())
}
