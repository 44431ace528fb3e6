//! Operations that read and write cannot express, as ioctl commands.

use std::{fs::OpenOptions, os::unix::fs::FileExt as _};

use anyhow::{Result, ensure};
use guest_suites_macros::guest_test;
use rustix::{io::Errno, mm::Advice};
use vdma::{
    Device, Operation,
    protocol::{COMMAND_INCOMING_BUFFER, Command},
};

use crate::support::{KIB, MIB, NODE, PAGE, bytes, errno, open, region::Region};

/// CRC32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 0 {
                crc >> 1
            } else {
                crc >> 1 ^ 0x82f6_3b78
            }
        })
    })
}

#[guest_test]
fn copy_moves_memory_to_memory() -> Result<()> {
    let device = open()?;
    let source = bytes::random(1, 3 * PAGE + 123);
    for (from, to, length) in [
        (0, 0, 0),
        (1, 0, 1),
        (5, 4000, 7000),
        (4095, 3, 2),
        (0, 1, 12000),
    ] {
        let mut target = vec![0xee; 4 * PAGE];
        device.copy(&source[from..from + length], &mut target[to..to + length])?;
        let mut expected = vec![0xee; 4 * PAGE];
        expected[to..to + length].copy_from_slice(&source[from..from + length]);
        bytes::expect(&target, &expected, "the target of a copy")?;
    }
    Ok(())
}

/// Scattered pages that begin at different offsets in a page: the most segments that there can be.
#[guest_test]
fn long_copies_are_split() -> Result<()> {
    const LENGTH: usize = 3 * MIB + 4567;
    let device = open()?;
    let source = Region::anonymous(4 * MIB)?;
    let target = Region::anonymous(4 * MIB)?;
    target.advise(Advice::LinuxNoHugepage)?;
    let data = bytes::random(2, LENGTH);
    source.write(17, &data)?;
    target.write(0, &vec![0xee; 4 * MIB])?;
    let before = device.file_statistics()?;
    let mut command = Command {
        operation: Operation::Copy.code(),
        length: LENGTH as u64,
        outgoing: source.at(17) as u64,
        incoming: target.at(4001) as u64,
        ..Command::default()
    };
    // SAFETY: Both ranges are inside the regions, into which no references exist.
    unsafe { device.run(&mut command) }?;
    ensure!(command.result == LENGTH as i64, "{command:?}");
    let after = device.file_statistics()?;
    ensure!(
        after.completed - before.completed > 1,
        "{} requests",
        after.completed - before.completed
    );
    let mut expected = vec![0xee; 4 * MIB];
    expected[4001..4001 + LENGTH].copy_from_slice(&data);
    bytes::expect(&target.read(0..4 * MIB)?, &expected, "a long copy")
}

/// A NOP or FLUSH has neither data nor a range: it is one request, whatever its length.
#[guest_test]
fn operations_without_data_ignore_the_length() -> Result<()> {
    let device = open()?;
    for operation in [Operation::Nop, Operation::Flush] {
        for length in [1, 64 << 30, i64::MAX.cast_unsigned(), u64::MAX] {
            let before = device.file_statistics()?.submitted;
            let mut command = Command {
                operation: operation.code(),
                offset: u64::MAX,
                length,
                ..Command::default()
            };
            // SAFETY: The operation has no data.
            unsafe { device.run(&mut command) }?;
            ensure!(command.result == 0, "{command:?}");
            let requests = device.file_statistics()?.submitted - before;
            ensure!(requests == 1, "{requests} requests for {command:?}");
        }
    }
    Ok(())
}

#[guest_test]
fn move_handles_overlap() -> Result<()> {
    let device = open()?;
    let data = bytes::random(3, 64 * KIB);
    for (to, from, length) in [
        (1000, 0, 60000),
        (0, 1000, 60000),
        (500, 500, 100),
        (0, 32768, 32768),
    ] {
        device.file().write_all_at(&data, 0)?;
        device.move_within(to as u64, from as u64, length as u64)?;
        let mut expected = data.clone();
        expected.copy_within(from..from + length, to);
        bytes::expect_at(device.file(), 0, &expected, "device memory after a move")?;
    }
    Ok(())
}

#[guest_test]
fn fill_repeats_the_pattern() -> Result<()> {
    const PATTERN: u64 = 0x8877_6655_4433_2211;
    let device = open()?;
    let expected = |length: usize| -> Vec<u8> {
        PATTERN
            .to_le_bytes()
            .into_iter()
            .cycle()
            .take(length)
            .collect()
    };
    for (offset, length) in [(0, 8), (3, 1), (5, 100_003)] {
        device.fill(offset, length as u64, PATTERN)?;
        bytes::expect_at(
            device.file(),
            offset,
            &expected(length),
            "filled device memory",
        )?;
    }
    // Guest memory is split into requests, and not at multiples of the pattern.
    let region = Region::anonymous(6 * MIB)?;
    region.write(0, &vec![0; 6 * MIB])?;
    for (start, length) in [(1, 5), (4093, 20), (77, 5 * MIB + 3)] {
        let mut command = Command {
            operation: Operation::FillGuest.code(),
            length: length as u64,
            argument: PATTERN,
            incoming: region.at(start) as u64,
            ..Command::default()
        };
        // SAFETY: The range is inside the region, into which no references exist.
        unsafe { device.run(&mut command) }?;
        ensure!(command.result == length as i64, "{command:?}");
        bytes::expect(
            &region.read(start..start + length)?,
            &expected(length),
            "filled memory",
        )?;
    }
    Ok(())
}

#[guest_test]
fn compare_finds_the_first_difference() -> Result<()> {
    const LENGTH: usize = 5 * MIB + 99;
    let device = open()?;
    let data = bytes::random(4, LENGTH);
    device.file().write_all_at(&data, 1000)?;
    ensure!(
        device.compare(1000, &*data)?.is_none(),
        "equal bytes compare as different"
    );
    ensure!(
        device.compare(1000, &data[..0])?.is_none(),
        "an empty range compares as different"
    );
    for at in [0, 1, 4095, 1_500_000, 3 * MIB, LENGTH - 1] {
        let mut other = data.clone();
        other[at] ^= 1;
        other[LENGTH - 1] ^= 2;
        let found = device.compare(1000, &*other)?;
        ensure!(found == Some(at as u64), "{found:?} instead of {at}");
    }
    Ok(())
}

#[guest_test]
fn checksums_are_crc32c() -> Result<()> {
    let device = open()?;
    for (seed, length) in [(5, 0), (6, 1), (7, 10_000), (8, 5 * MIB + 1)] {
        let data = bytes::random(seed, length);
        let expected = crc32c(&data);
        let written = device.write_crc32c(333, &*data)?;
        ensure!(
            written == expected,
            "write: {written:#x} instead of {expected:#x}"
        );
        let mut back = vec![0; length];
        let read = device.read_crc32c(333, &mut *back)?;
        ensure!(read == expected, "read: {read:#x} instead of {expected:#x}");
        bytes::expect(&back, &data, "what was read with a checksum")?;
        let of_memory = device.crc32c_of(&*data, 0)?;
        ensure!(
            of_memory == expected,
            "memory: {of_memory:#x} instead of {expected:#x}"
        );
        let of_device = device.crc32c(333, length as u64, 0)?;
        ensure!(
            of_device == expected,
            "device: {of_device:#x} instead of {expected:#x}"
        );
        // In two steps, the second of which continues the first.
        let half = length / 3;
        let first = device.crc32c_of(&data[..half], 0)?;
        let both = device.crc32c_of(&data[half..], first)?;
        ensure!(
            both == expected,
            "in two steps: {both:#x} instead of {expected:#x}"
        );
        let first = device.crc32c(333, half as u64, 0)?;
        let both = device.crc32c(333 + half as u64, (length - half) as u64, first)?;
        ensure!(
            both == expected,
            "device, in two steps: {both:#x} instead of {expected:#x}"
        );
    }
    Ok(())
}

#[guest_test]
fn discard_leaves_zeroes() -> Result<()> {
    let device = open()?;
    let data = vec![0x5a; MIB];
    device.file().write_all_at(&data, 0)?;
    device.discard(4000, 500_000)?;
    let mut expected = data;
    expected[4000..504_000].fill(0);
    bytes::expect_at(device.file(), 0, &expected, "device memory after a discard")
}

#[guest_test]
fn only_the_given_range_changes() -> Result<()> {
    let device = open()?;
    let region = Region::anonymous(4 * PAGE)?;
    let data = bytes::random(9, 4 * PAGE);
    device.file().write_all_at(&data, 0)?;
    for (start, length) in [(1, 1), (100, 4000), (4095, 2), (3, 8190)] {
        region.write(0, &vec![0xee; 4 * PAGE])?;
        let mut command = Command {
            operation: Operation::ReadCrc32c.code(),
            offset: 50,
            length: length as u64,
            incoming: region.at(start) as u64,
            ..Command::default()
        };
        // SAFETY: The range is inside the region, into which no references exist.
        unsafe { device.run(&mut command) }?;
        let mut expected = vec![0xee; 4 * PAGE];
        expected[start..start + length].copy_from_slice(&data[50..50 + length]);
        bytes::expect(
            &region.read(0..4 * PAGE)?,
            &expected,
            "memory around the range",
        )?;
    }
    Ok(())
}

#[guest_test]
fn batches_run_every_command() -> Result<()> {
    let device = open()?;
    let mut commands: Vec<Command> = (0..256_u64)
        .map(|index| Command {
            operation: Operation::Fill.code(),
            offset: index * 1000,
            length: 1000,
            argument: index * 0x0101_0101_0101_0101,
            ..Command::default()
        })
        .collect();
    // One of them is invalid, which does not affect the others.
    commands[100].operation = 99;
    device.fill(0, 256_000, 0xffff_ffff_ffff_ffff)?;
    // SAFETY: These commands name no addresses.
    unsafe { device.run_batch(&mut commands) }?;
    let mut back = vec![0; 256_000];
    device.file().read_exact_at(&mut back, 0)?;
    for (index, (command, chunk)) in commands.iter().zip(back.chunks(1000)).enumerate() {
        let (result, byte) = if index == 100 {
            (-i64::from(Errno::INVAL.raw_os_error()), 0xff)
        } else {
            (1000, u8::try_from(index)?)
        };
        ensure!(command.result == result, "command {index}: {command:?}");
        ensure!(
            chunk.iter().all(|b| *b == byte),
            "command {index} did not fill its part"
        );
    }
    // SAFETY: There are no commands.
    unsafe { device.run_batch(&mut []) }?;
    let mut many = vec![Command::default(); 257];
    // SAFETY: These commands name no addresses.
    let result = unsafe { device.run_batch(&mut many) };
    ensure!(result.is_err(), "257 commands in a batch");
    Ok(())
}

/// Fails unless the driver refuses the command with `expected`.
fn refused(device: &Device, mut command: Command, expected: Errno, what: &str) -> Result<()> {
    // SAFETY: The callers' commands name no memory that is mapped and written to.
    let result = unsafe { device.run(&mut command) };
    errno::expect_vdma(result, expected, what)
}

#[guest_test]
fn bad_commands_are_refused() -> Result<()> {
    let device = open()?;
    let size = device.info().memory_size;
    let nop = Command::default();
    let fill = Command {
        operation: Operation::Fill.code(),
        ..nop
    };
    let cases = [
        (
            "an unknown operation",
            Command {
                operation: 14,
                ..nop
            },
            Errno::INVAL,
        ),
        ("an unknown flag", Command { flags: 4, ..nop }, Errno::INVAL),
        (
            "a reserved field",
            Command { reserved: 1, ..nop },
            Errno::INVAL,
        ),
        (
            "a range that exceeds device memory",
            Command {
                offset: size,
                length: 1,
                ..fill
            },
            Errno::INVAL,
        ),
        (
            "a range that overflows",
            Command {
                offset: u64::MAX,
                length: 2,
                ..fill
            },
            Errno::INVAL,
        ),
        (
            "a source that exceeds device memory",
            Command {
                operation: Operation::Move.code(),
                argument: size - 1,
                length: 2,
                ..nop
            },
            Errno::INVAL,
        ),
        (
            "a buffer that does not exist",
            Command {
                operation: Operation::Read.code(),
                flags: COMMAND_INCOMING_BUFFER,
                incoming_buffer: 5,
                length: 1,
                ..nop
            },
            Errno::NOENT,
        ),
    ];
    for (what, command, expected) in cases {
        refused(&device, command, expected, what)?;
    }
    device.nop()?;
    Ok(())
}

#[guest_test]
fn the_access_mode_applies_to_commands() -> Result<()> {
    let reader = Device::open_with(NODE, OpenOptions::new().read(true))?;
    let writer = Device::open_with(NODE, OpenOptions::new().write(true))?;
    let mut buffer = [0; 10];
    reader.read(0, &mut buffer[..])?;
    errno::expect_vdma(reader.fill(0, 10, 0), Errno::BADF, "a fill by a reader")?;
    errno::expect_vdma(
        reader.write(0, &buffer[..]),
        Errno::BADF,
        "a write by a reader",
    )?;
    errno::expect_vdma(reader.discard(0, 10), Errno::BADF, "a discard by a reader")?;
    errno::expect_vdma(
        reader.move_within(0, 5, 1),
        Errno::BADF,
        "a move by a reader",
    )?;
    writer.fill(0, 10, 0)?;
    errno::expect_vdma(
        writer.crc32c(0, 10, 0),
        Errno::BADF,
        "a checksum by a writer",
    )?;
    errno::expect_vdma(
        writer.read(0, &mut buffer[..]),
        Errno::BADF,
        "a read by a writer",
    )?;
    errno::expect_vdma(
        writer.compare(0, &buffer[..]),
        Errno::BADF,
        "a comparison by a writer",
    )
}

#[guest_test]
fn bad_addresses_are_efault() -> Result<()> {
    let device = open()?;
    let command = Command {
        operation: Operation::Copy.code(),
        length: 100,
        ..Command::default()
    };
    let region = Region::anonymous(PAGE)?;
    region.write(0, &[1; 10])?;
    let good = region.at(0) as u64;
    for (outgoing, incoming) in [(16, good), (good, 16), (u64::MAX - 50, good), (16, 16)] {
        let command = Command {
            outgoing,
            incoming,
            ..command
        };
        refused(
            &device,
            command,
            Errno::FAULT,
            "a copy of memory that is not mapped",
        )?;
    }
    Ok(())
}
