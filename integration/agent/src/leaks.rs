//! The kernel's leak detector (Documentation/dev-tools/kmemleak.rst).

use std::{fs, io, time::Duration};

/// The detector's file, in kernels that have one.
const DETECTOR: &str = "/sys/kernel/debug/kmemleak";

/// The detector ignores objects that are younger than this.
const MINIMUM_AGE: Duration = Duration::from_secs(5);

/// Scans and returns the detector's report; empty if it found nothing or does not exist.
pub(crate) fn find() -> String {
    match scan() {
        Ok(report) => report,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => format!("{DETECTOR}: {error}"),
    }
}

fn scan() -> io::Result<String> {
    fs::metadata(DETECTOR)?;
    std::thread::sleep(MINIMUM_AGE);
    // An object is reported only if its checksum is the same in two scans.
    fs::write(DETECTOR, "scan")?;
    fs::write(DETECTOR, "scan")?;
    fs::read_to_string(DETECTOR)
}
