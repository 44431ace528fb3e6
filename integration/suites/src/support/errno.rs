//! Calls that have to fail with a certain error.

use std::{fmt::Debug, io};

use anyhow::{Result, bail};
use rustix::io::Errno;

/// Fails unless `result` is the error `expected`.
pub(crate) fn expect<T: Debug, E: Into<io::Error>>(
    result: Result<T, E>,
    expected: Errno,
    what: &str,
) -> Result<()> {
    match result {
        Ok(value) => bail!("{what} returned {value:?} instead of {expected:?}"),
        Err(error) => {
            let error: io::Error = error.into();
            if error.raw_os_error() != Some(expected.raw_os_error()) {
                bail!("{what} failed with \"{error}\" instead of {expected:?}");
            }
            Ok(())
        }
    }
}

/// As [`expect`], for errors of the crate `vdma`.
pub(crate) fn expect_vdma<T: Debug>(
    result: Result<T, vdma::Error>,
    expected: Errno,
    what: &str,
) -> Result<()> {
    match result {
        Ok(value) => bail!("{what} returned {value:?} instead of {expected:?}"),
        Err(vdma::Error::Open { cause, .. } | vdma::Error::Call { cause, .. }) => {
            expect::<T, _>(Err(cause), expected, what)
        }
        Err(error) => bail!("{what} failed with \"{error}\" instead of {expected:?}"),
    }
}
