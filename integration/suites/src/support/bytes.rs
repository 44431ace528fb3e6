//! Test data, and comparisons that say where they failed.

use std::{fs::File, os::unix::fs::FileExt as _};

use anyhow::{Context as _, Result, bail, ensure};

/// `length` random bytes; the same ones for the same seed.
pub(crate) fn random(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// Fails unless both are equal; says where the first difference is.
pub(crate) fn expect(actual: &[u8], expected: &[u8], what: &str) -> Result<()> {
    ensure!(
        actual.len() == expected.len(),
        "{what}: {} bytes instead of {}",
        actual.len(),
        expected.len()
    );
    let different = |(a, b): (&u8, &u8)| a != b;
    if let Some(at) = actual.iter().zip(expected).position(different) {
        let count = actual
            .iter()
            .zip(expected)
            .filter(|pair| different(*pair))
            .count();
        bail!(
            "{what}: byte {at:#x} is {:#04x} instead of {:#04x}; {count} of {} bytes differ",
            actual[at],
            expected[at],
            actual.len()
        );
    }
    Ok(())
}

/// Fails unless `file` (the device, or any other) holds `expected` at `offset`.
pub(crate) fn expect_at(file: &File, offset: u64, expected: &[u8], what: &str) -> Result<()> {
    let mut actual = vec![0; expected.len()];
    file.read_exact_at(&mut actual, offset)
        .with_context(|| format!("{what}: reading {} bytes", expected.len()))?;
    expect(&actual, expected, what)
}

/// Writes `data` to `file` at `offset`, reads it back and compares.
pub(crate) fn round_trip(file: &File, offset: u64, data: &[u8], what: &str) -> Result<()> {
    file.write_all_at(data, offset)
        .with_context(|| format!("{what}: writing {} bytes", data.len()))?;
    expect_at(file, offset, data, what)
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    #[test]
    fn differences_and_missing_bytes_are_errors() {
        let file = File::from(memfd_create("bytes", MemfdFlags::CLOEXEC).unwrap());
        let data = random(1, 100);
        round_trip(&file, 7, &data, "whole").unwrap();
        expect_at(&file, 8, &data[1..], "a part").unwrap();
        let mut other = data.clone();
        other[99] ^= 1;
        let error = expect_at(&file, 7, &other, "another").unwrap_err();
        assert!(
            error.to_string().contains("1 of 100 bytes differ"),
            "{error}"
        );
        assert!(expect_at(&file, 8, &data, "beyond the end").is_err());
    }
}
