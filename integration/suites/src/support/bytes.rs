//! Test data, and comparisons that say where they failed.

use anyhow::{Result, bail, ensure};

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
