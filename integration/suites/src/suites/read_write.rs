//! Plain reads and writes: every alignment, every end, every bad pointer.

use std::{
    fs::{File, OpenOptions},
    io::{IoSlice, IoSliceMut, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::FileExt as _,
    sync::Barrier,
};

use anyhow::{Context as _, Result, bail, ensure};
use guest_suites_macros::guest_test;
use rustix::{
    io::{Errno, ReadWriteFlags},
    mm::{MapFlags, MprotectFlags},
};

use crate::support::{
    KIB, MIB, NODE, PAGE, bytes, errno, open, open_direct,
    region::{self, Region},
};

/// Where the tests' bytes are in device memory: not at a page boundary of its own.
const WINDOW_AT: u64 = 5 * MIB as u64 - 1234;

/// Bytes around a window that have to stay as they are.
const MARGIN: usize = 300;

/// Lengths and offsets that are likely to be got wrong, and some others.
fn odd_number(random: &mut fastrand::Rng, most: usize) -> usize {
    const NEAR: [usize; 9] = [0, 1, 8, 63, 64, 512, PAGE, 2 * PAGE, 4 * PAGE];
    let number = if random.bool() {
        let near = NEAR[random.usize(..NEAR.len())];
        (near + random.usize(..=4)).saturating_sub(2)
    } else {
        random.usize(..=most)
    };
    number.min(most)
}

#[guest_test]
fn any_alignment_and_length_moves_these_bytes_and_no_others() -> Result<()> {
    for seed in 1..=3 {
        random_operations(seed).with_context(|| format!("seed {seed}"))?;
    }
    Ok(())
}

/// Random operations on a window of device memory, against an array that has to hold the same.
fn random_operations(seed: u64) -> Result<()> {
    const WINDOW: usize = 6 * PAGE;
    const BUFFER: usize = 6 * PAGE;
    let mut random = fastrand::Rng::with_seed(seed);
    let device = open()?;
    let file = device.file();
    let buffer = Region::anonymous(BUFFER)?;

    let mut oracle = bytes::random(seed, MARGIN + WINDOW + MARGIN);
    let margin_at = WINDOW_AT - MARGIN as u64;
    file.write_all_at(&oracle, margin_at)?;

    for step in 0..200 {
        let offset = odd_number(&mut random, WINDOW);
        let length = odd_number(&mut random, (WINDOW - offset).min(BUFFER));
        let start = odd_number(&mut random, BUFFER - length);
        let range = start..start + length;
        let position = WINDOW_AT + offset as u64;
        let device_range = MARGIN + offset..MARGIN + offset + length;
        let before = bytes::random(random.u64(..), BUFFER);
        buffer.write(0, &before)?;
        let is_write = random.bool();
        let what = format!(
            "step {step}: {} of {length} bytes at device {offset:#x}, buffer {start:#x}",
            if is_write { "write" } else { "read" }
        );
        if is_write {
            let moved = buffer
                .drain_to(file, range.clone(), position)?
                .context(what.clone())?;
            ensure!(moved == length, "{what}: {moved} bytes");
            oracle[device_range].copy_from_slice(&before[range]);
            bytes::expect(
                &buffer.read(0..BUFFER)?,
                &before,
                &format!("{what}: the buffer"),
            )?;
        } else {
            let moved = buffer
                .fill_from(file, range.clone(), position)?
                .context(what.clone())?;
            ensure!(moved == length, "{what}: {moved} bytes");
            let mut expected = before;
            expected[range].copy_from_slice(&oracle[device_range]);
            bytes::expect(
                &buffer.read(0..BUFFER)?,
                &expected,
                &format!("{what}: the buffer"),
            )?;
        }
    }
    // The CPU sees device memory through the BAR, and so knows nothing of what DMA got wrong.
    let first_page = margin_at / PAGE as u64 * PAGE as u64;
    let lead = usize::try_from(margin_at - first_page)?;
    let mapping = device.map(first_page, (lead + oracle.len()).next_multiple_of(PAGE))?;
    let mut seen = vec![0; oracle.len()];
    mapping.read(lead, &mut seen)?;
    bytes::expect(&seen, &oracle, "device memory in the end")
}

#[guest_test]
fn reading_at_the_end_returns_zero() -> Result<()> {
    let device = open()?;
    let size = device.info().memory_size;
    for position in [size, size + 1, size + MIB as u64, i64::MAX as u64 - 4096] {
        let mut buffer = [0xaa; 100];
        let moved = device.file().read_at(&mut buffer, position)?;
        ensure!(moved == 0, "{moved} bytes read at {position:#x}");
        ensure!(buffer == [0xaa; 100], "the buffer changed");
    }
    Ok(())
}

#[guest_test]
fn writing_at_the_end_is_enospc() -> Result<()> {
    let device = open()?;
    let size = device.info().memory_size;
    for position in [size, size + 1, size + MIB as u64, i64::MAX as u64 - 4096] {
        let result = device.file().write_at(&[1; 100], position);
        errno::expect(result, Errno::NOSPC, &format!("a write at {position:#x}"))?;
    }
    Ok(())
}

#[guest_test]
fn ranges_across_the_end_are_short() -> Result<()> {
    let device = open()?;
    let size = device.info().memory_size;
    for inside in [1, 511, PAGE, PAGE + 1, 3 * PAGE - 1] {
        let position = size - inside as u64;
        let data = bytes::random(inside as u64, inside + 2 * PAGE);
        let moved = device.file().write_at(&data, position)?;
        ensure!(moved == inside, "{moved} bytes written, {inside} fit");
        let mut buffer = vec![0x55; data.len()];
        let moved = device.file().read_at(&mut buffer, position)?;
        ensure!(moved == inside, "{moved} bytes read, {inside} are there");
        bytes::expect(&buffer[..inside], &data[..inside], "what is inside")?;
        ensure!(
            buffer[inside..].iter().all(|&byte| byte == 0x55),
            "the buffer changed beyond the end"
        );
    }
    Ok(())
}

#[guest_test]
fn negative_offsets_are_einval() -> Result<()> {
    let device = open()?;
    let mut buffer = [0; 8];
    let result = device.file().read_at(&mut buffer, u64::MAX);
    errno::expect(result, Errno::INVAL, "a read at -1")?;
    let result = device.file().write_at(&buffer, i64::MIN.cast_unsigned());
    errno::expect(result, Errno::INVAL, "a write at -2^63")
}

#[guest_test]
fn zero_length_calls_submit_no_request() -> Result<()> {
    let device = open()?;
    let size = device.info().memory_size;
    for position in [0, 1, size - 1, size, size + 1] {
        let moved = device.file().write_at(&[], position)?;
        ensure!(moved == 0, "{moved} bytes written");
        let moved = device.file().read_at(&mut [], position)?;
        ensure!(moved == 0, "{moved} bytes read");
    }
    let empty: [IoSlice<'_>; 3] = [IoSlice::new(&[]), IoSlice::new(&[]), IoSlice::new(&[])];
    ensure!(rustix::io::pwritev(device.file(), &empty, 0)? == 0);
    ensure!(
        device.file_statistics()?.submitted == 0,
        "a request was made"
    );
    Ok(())
}

#[guest_test]
fn seeking_to_the_end_gives_the_size() -> Result<()> {
    let device = open()?;
    let size = device.info().memory_size;
    let mut file = device.file();
    ensure!(file.seek(SeekFrom::End(0))? == size, "not the size");
    ensure!(file.seek(SeekFrom::End(-5))? == size - 5);
    ensure!(file.seek(SeekFrom::Current(3))? == size - 2);
    errno::expect(
        file.seek(SeekFrom::Current(i64::MIN)),
        Errno::INVAL,
        "a seek to before 0",
    )
}

#[guest_test]
fn the_position_moves_by_what_was_moved() -> Result<()> {
    let device = open()?;
    let size = device.info().memory_size;
    let mut file = device.file();
    let data = bytes::random(9, 10_000);
    file.seek(SeekFrom::Start(777))?;
    file.write_all(&data[..3000])?;
    file.write_all(&data[3000..])?;
    ensure!(file.stream_position()? == 10_777);
    file.seek(SeekFrom::Start(777))?;
    let mut read = vec![0; 10_000];
    file.read_exact(&mut read[..1])?;
    file.read_exact(&mut read[1..])?;
    bytes::expect(&read, &data, "what was written")?;
    ensure!(file.stream_position()? == 10_777);
    file.seek(SeekFrom::End(-10))?;
    ensure!(file.read(&mut read)? == 10, "more than there is");
    ensure!(file.stream_position()? == size);
    errno::expect(file.write(&[1]), Errno::NOSPC, "a write at the end")?;
    ensure!(
        file.stream_position()? == size,
        "a failed write moved the position"
    );
    // Positioned calls leave it alone.
    file.read_exact_at(&mut read, 0)?;
    ensure!(file.stream_position()? == size);
    Ok(())
}

/// Writes `data` as these segments, and reads it back as the same ones in another buffer.
fn by_segments(data: &[u8], lengths: &[usize], position: u64) -> Result<()> {
    let device = open()?;
    let mut rest = data;
    let mut sources = Vec::new();
    for &length in lengths {
        let (segment, behind) = rest.split_at(length);
        sources.push(IoSlice::new(segment));
        rest = behind;
    }
    let total: usize = lengths.iter().sum();
    let moved = rustix::io::pwritev(device.file(), &sources, position)?;
    ensure!(moved == total, "{moved} of {total} bytes written");

    bytes::expect_at(
        device.file(),
        position,
        &data[..total],
        "what the segments wrote",
    )?;

    let mut buffer = vec![0; total];
    let mut rest = buffer.as_mut_slice();
    let mut targets = Vec::new();
    for &length in lengths {
        let (segment, behind) = rest.split_at_mut(length);
        targets.push(IoSliceMut::new(segment));
        rest = behind;
    }
    let moved = rustix::io::preadv(device.file(), &mut targets, position)?;
    ensure!(moved == total, "{moved} of {total} bytes read");
    bytes::expect(&buffer, &data[..total], "what the segments read")?;
    let statistics = device.file_statistics()?;
    ensure!(
        statistics.bytes_written == total as u64 && statistics.failed == 0,
        "{statistics:?}"
    );
    Ok(())
}

#[guest_test]
fn segments_within_one_page() -> Result<()> {
    let data = bytes::random(21, PAGE);
    by_segments(&data, &[1; 100], 0)?;
    by_segments(&data, &[16; 256], 4095)?;
    by_segments(&data, &[1, 0, 2, 0, 0, 3, 500, 1], 99)
}

#[guest_test]
fn segments_over_many_pages() -> Result<()> {
    let mut random = fastrand::Rng::with_seed(22);
    for round in 0..20 {
        let lengths: Vec<usize> = (0..random.usize(1..=1024))
            .map(|_| match random.u8(..4) {
                0 => random.usize(..3),
                1 => random.usize(..64),
                2 => random.usize(..2000),
                _ => random.usize(..6000).saturating_sub(2000),
            })
            .collect();
        let data = bytes::random(round, lengths.iter().sum());
        by_segments(&data, &lengths, random.u64(..10_000))
            .with_context(|| format!("round {round}: {} segments", lengths.len()))?;
    }
    Ok(())
}

#[guest_test]
fn one_page_a_thousand_times() -> Result<()> {
    let device = open()?;
    let page = bytes::random(23, PAGE);
    let sources = vec![IoSlice::new(&page); 1000];
    let moved = rustix::io::pwritev(device.file(), &sources, 100)?;
    ensure!(moved == 1000 * PAGE, "{moved} bytes written");
    bytes::expect_at(
        device.file(),
        100,
        &page.repeat(1000),
        "a thousand times the page",
    )
}

#[guest_test]
fn long_transfers_are_split_and_reassembled() -> Result<()> {
    const LENGTH: usize = 16 * MIB + 4321;
    let device = open()?;
    let data = bytes::random(24, LENGTH);
    let source = Region::anonymous(LENGTH)?;
    let target = Region::anonymous(LENGTH)?;
    // Touched in no order, their pages are in no order either, and cannot be coalesced.
    let mut pages: Vec<usize> = (0..LENGTH.div_ceil(PAGE)).collect();
    fastrand::Rng::with_seed(24).shuffle(&mut pages);
    for page in pages {
        source.write(page * PAGE, &[1])?;
        target.write(page * PAGE, &[1])?;
    }
    source.write(0, &data)?;
    let position = 3 * MIB as u64 + 77;
    let moved = source.drain_to(device.file(), 0..LENGTH, position)??;
    ensure!(moved == LENGTH, "{moved} bytes written in one call");
    let moved = target.fill_from(device.file(), 0..LENGTH, position)??;
    ensure!(moved == LENGTH, "{moved} bytes read in one call");
    bytes::expect(&target.read(0..LENGTH)?, &data, "what came back")?;
    let statistics = device.file_statistics()?;
    ensure!(
        statistics.submitted > 2,
        "the calls were not split: {statistics:?}"
    );
    ensure!(
        statistics.completed == statistics.submitted,
        "{statistics:?}"
    );
    ensure!(statistics.bytes_read == LENGTH as u64, "{statistics:?}");
    Ok(())
}

/// Fails unless a plain transfer still works.
fn still_works() -> Result<()> {
    let device = open()?;
    let data = bytes::random(99, 3 * PAGE);
    bytes::round_trip(device.file(), 12_345, &data, "the transfer afterwards")
}

#[guest_test]
fn a_bad_pointer_is_efault() -> Result<()> {
    let device = open()?;
    let hole = {
        let mut region = Region::anonymous(4 * PAGE)?;
        let address = region.at(0);
        region.cut_front(4 * PAGE)?;
        address
    };
    let kernel = 0xffff_8880_0000_0000_usize as *mut u8;
    let not_canonical = 0x8000_0000_0000_0000_usize as *mut u8;
    for (address, what) in [
        (std::ptr::null_mut(), "null"),
        (hole, "a hole"),
        (hole.wrapping_add(17), "an odd address in a hole"),
        (kernel, "a kernel address"),
        (not_canonical, "an address that is none"),
    ] {
        for length in [1, 100, 3 * PAGE] {
            // SAFETY: Nothing is mapped there: no mapping was made since the hole was.
            let result = unsafe { region::pread(device.file(), address, length, 0) };
            errno::expect(
                result,
                Errno::FAULT,
                &format!("a read of {length} bytes to {what}"),
            )?;
            let result = region::pwrite(device.file(), address, length, 0);
            errno::expect(
                result,
                Errno::FAULT,
                &format!("a write of {length} from {what}"),
            )?;
        }
    }
    still_works()
}

#[guest_test]
fn bad_memory_behind_good_is_short() -> Result<()> {
    let device = open()?;
    for good_pages in [1, 2, 5, 300] {
        let good = good_pages * PAGE;
        let position = 40_000;
        let data = bytes::random(good as u64, good + 3 * PAGE);
        device.file().write_all_at(&data, position)?;
        let mut buffer = Region::anonymous(good + 2 * PAGE)?;
        buffer.cut_back(good)?;
        let start = PAGE - 100;
        // SAFETY: The region is this test's own, and nothing is mapped behind it: the mapping was
        // made in one piece, and no other since its end was cut off.
        let moved =
            unsafe { region::pread(device.file(), buffer.at(start), good + PAGE, position) }
                .with_context(|| format!("a read into {good_pages} pages"))?;
        let most = good - start;
        ensure!(
            (1..=most).contains(&moved),
            "{moved} bytes read into {most} good ones"
        );
        bytes::expect(
            &buffer.read(start..start + moved)?,
            &data[..moved],
            "the good half",
        )?;

        let source = bytes::random(7, good);
        buffer.write(0, &source)?;
        let moved = region::pwrite(device.file(), buffer.at(start), good + PAGE, position)
            .with_context(|| format!("a write from {good_pages} pages"))?;
        ensure!(
            (1..=most).contains(&moved),
            "{moved} bytes written from {most} good ones"
        );
        let mut back = vec![0; data.len()];
        device.file().read_exact_at(&mut back, position)?;
        bytes::expect(
            &back[..moved],
            &source[start..start + moved],
            "the good half",
        )?;
        bytes::expect(&back[moved..], &data[moved..], "device memory behind it")?;
    }
    still_works()
}

#[guest_test]
fn read_only_memory_is_a_source_only() -> Result<()> {
    let device = open()?;
    let data = bytes::random(31, 3 * PAGE);
    let buffer = Region::anonymous(data.len())?;
    buffer.write(0, &data)?;
    buffer.protect(MprotectFlags::READ)?;
    let moved = buffer.drain_to(device.file(), 0..data.len(), 50)??;
    ensure!(
        moved == data.len(),
        "{moved} bytes written from read-only memory"
    );
    bytes::expect_at(device.file(), 50, &data, "what read-only memory held")?;

    device.file().write_all_at(&vec![0; data.len()], 50)?;
    let result = buffer.fill_from(device.file(), 0..data.len(), 50)?;
    errno::expect(result, Errno::FAULT, "a read into read-only memory")?;
    bytes::expect(&buffer.read(0..data.len())?, &data, "read-only memory")?;

    // The kernel's zero page must not become anything else.
    let zeroes = Region::anonymous(PAGE)?;
    zeroes.read(0..1)?;
    let moved = zeroes.fill_from(device.file(), 0..PAGE, 50 + PAGE as u64)??;
    ensure!(moved == PAGE);
    device.file().write_all_at(&data, 50)?;
    let moved = zeroes.fill_from(device.file(), 0..PAGE, 50)??;
    ensure!(moved == PAGE);
    let others = Region::anonymous(PAGE)?;
    bytes::expect(&others.read(0..PAGE)?, &[0; PAGE], "fresh memory")?;

    buffer.protect(MprotectFlags::empty())?;
    let result = buffer.drain_to(device.file(), 0..PAGE, 0)?;
    errno::expect(
        result,
        Errno::FAULT,
        "a write from memory without any right",
    )?;
    still_works()
}

#[guest_test]
fn mapped_device_memory_as_a_buffer_is_efault() -> Result<()> {
    let device = open()?;
    let mapping = Region::file(device.file(), 0, 4 * PAGE, MapFlags::SHARED)?;
    let result = mapping.fill_from(device.file(), 0..PAGE, MIB as u64)?;
    errno::expect(result, Errno::FAULT, "a read into the mapped BAR")?;
    let result = mapping.drain_to(device.file(), 1..PAGE, MIB as u64)?;
    errno::expect(result, Errno::FAULT, "a write from the mapped BAR")?;
    still_works()
}

#[guest_test]
fn direct_files_take_any_alignment() -> Result<()> {
    let device = open_direct()?;
    let buffer = Region::anonymous(4 * PAGE)?;
    for (start, length, position) in [(0, PAGE, 0), (1, 1, 1), (17, 5000, 4095), (511, 513, 7)] {
        let data = bytes::random(position, length);
        buffer.write(start, &data)?;
        let range = start..start + length;
        ensure!(buffer.drain_to(device.file(), range.clone(), position)?? == length);
        buffer.write(start, &vec![0; length])?;
        ensure!(buffer.fill_from(device.file(), range.clone(), position)?? == length);
        bytes::expect(&buffer.read(range)?, &data, "through O_DIRECT")?;
    }
    Ok(())
}

/// The bytes, or `EAGAIN`.
fn or_again(result: rustix::io::Result<usize>) -> Result<Option<usize>> {
    match result {
        Ok(moved) => Ok(Some(moved)),
        Err(Errno::AGAIN) => Ok(None),
        Err(error) => Err(error).context("a call with RWF_NOWAIT"),
    }
}

#[guest_test]
fn nowait_succeeds_or_returns_eagain() -> Result<()> {
    let device = open()?;
    for length in [1, PAGE, 100_000, 4 * MIB] {
        let old = bytes::random(1, length);
        let new = bytes::random(2, length);
        device.file().write_all_at(&old, 0)?;
        let source = [IoSlice::new(&new)];
        let result = rustix::io::pwritev2(device.file(), &source, 0, ReadWriteFlags::NOWAIT);
        let written = or_again(result)?;
        // An idle device has room for what is one request.
        ensure!(
            length > PAGE || written == Some(length),
            "{written:?} of {length} bytes written"
        );
        let written = written.unwrap_or(0);
        let mut expected = old;
        expected[..written].copy_from_slice(&new[..written]);
        let mut back = vec![0; length];
        device.file().read_exact_at(&mut back, 0)?;
        bytes::expect(&back, &expected, "after a write with RWF_NOWAIT")?;

        back.fill(0);
        let mut target = [IoSliceMut::new(&mut back)];
        let result = rustix::io::preadv2(device.file(), &mut target, 0, ReadWriteFlags::NOWAIT);
        let read = or_again(result)?;
        ensure!(
            length > PAGE || read == Some(length),
            "{read:?} of {length} bytes read"
        );
        let read = read.unwrap_or(0);
        bytes::expect(&back[..read], &expected[..read], "a read with RWF_NOWAIT")?;
        ensure!(
            back[read..].iter().all(|&byte| byte == 0),
            "bytes beyond the count"
        );
    }
    Ok(())
}

#[guest_test]
fn high_priority_reads_and_writes() -> Result<()> {
    let device = open_direct()?;
    let data = bytes::random(3, 20_000);
    let flags = ReadWriteFlags::HIPRI;
    let moved = rustix::io::pwritev2(device.file(), &[IoSlice::new(&data)], 9, flags)?;
    ensure!(moved == data.len(), "{moved} bytes written");
    let mut back = vec![0; data.len()];
    let mut target = [IoSliceMut::new(&mut back)];
    let moved = rustix::io::preadv2(device.file(), &mut target, 9, flags)?;
    ensure!(moved == data.len(), "{moved} bytes read");
    bytes::expect(&back, &data, "through RWF_HIPRI")
}

#[guest_test]
fn many_threads_and_openers_at_once() -> Result<()> {
    const THREADS: usize = 8;
    const EACH: usize = 2 * MIB;
    let shared = open()?;
    let start = Barrier::new(THREADS);
    let work = |thread: usize| -> Result<()> {
        // Every other thread has a file of its own.
        let own = open()?;
        let file = if thread.is_multiple_of(2) {
            own.file()
        } else {
            shared.file()
        };
        let base = (thread * EACH) as u64;
        let mut random = fastrand::Rng::with_seed(thread as u64);
        let mut oracle = vec![0; 64 * KIB];
        file.write_all_at(&oracle, base)?;
        start.wait();
        for _ in 0..50 {
            let offset = random.usize(..oracle.len());
            let length = random.usize(..=oracle.len() - offset);
            let data = bytes::random(random.u64(..), length);
            file.write_all_at(&data, base + offset as u64)?;
            oracle[offset..offset + length].copy_from_slice(&data);
            bytes::expect_at(file, base, &oracle, "this thread's bytes")?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(move || work(thread)))
            .collect();
        for (number, thread) in threads.into_iter().enumerate() {
            match thread.join() {
                Ok(result) => result.with_context(|| format!("thread {number}"))?,
                Err(_) => bail!("thread {number} panicked"),
            }
        }
        Ok(())
    })
}

#[guest_test]
fn the_access_mode_is_honoured() -> Result<()> {
    let read_only = File::open(NODE)?;
    let mut buffer = [0; 10];
    read_only.read_exact_at(&mut buffer, 0)?;
    errno::expect(
        read_only.write_at(&buffer, 0),
        Errno::BADF,
        "a write to a read-only file",
    )?;
    let result = Region::file(&read_only, 0, PAGE, MapFlags::SHARED).map(|region| region.len());
    errno::expect(
        result,
        Errno::ACCESS,
        "a writable mapping of a read-only file",
    )?;

    let write_only = OpenOptions::new().write(true).open(NODE)?;
    write_only.write_all_at(&buffer, 0)?;
    let result = write_only.read_at(&mut buffer, 0);
    errno::expect(result, Errno::BADF, "a read from a write-only file")
}

#[guest_test]
fn other_ioctls_are_enotty() -> Result<()> {
    use std::os::fd::AsRawFd as _;
    let device = open()?;
    for command in [0, 0x5401, 0xd500, libc::c_ulong::from(u32::MAX)] {
        // SAFETY: The kernel checks the address, which is null.
        let result = unsafe { libc::ioctl(device.file().as_raw_fd(), command, 0) };
        let error = std::io::Error::last_os_error();
        ensure!(result == -1, "ioctl {command:#x} gave {result}");
        errno::expect::<(), _>(Err(error), Errno::NOTTY, &format!("ioctl {command:#x}"))?;
    }
    // A known one with a bad address.
    let command = libc::c_ulong::from(vdma_info_command());
    // SAFETY: As above.
    let result = unsafe { libc::ioctl(device.file().as_raw_fd(), command, 0) };
    let error = std::io::Error::last_os_error();
    ensure!(result == -1, "ioctl INFO to address 0 gave {result}");
    errno::expect::<(), _>(Err(error), Errno::FAULT, "ioctl INFO to address 0")
}

/// `_IOR(0xd5, 0, DeviceInfo)`.
fn vdma_info_command() -> u32 {
    2 << 30 | 64 << 16 | 0xd5 << 8
}
