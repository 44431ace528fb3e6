//! The kernel's leak detector (Documentation/dev-tools/kmemleak.rst).

use std::{fs, io, time::Duration};

/// Where the detector is, in kernels that have one.
const DETECTOR: &str = "/sys/kernel/debug/kmemleak";

/// The detector passes over what was allocated within this time.
const MINIMUM_AGE: Duration = Duration::from_secs(5);

/// What the detector reports after a scan; empty for nothing, or where there is no detector.
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
    // An object's checksum has to be the same in two scans before it is reported.
    fs::write(DETECTOR, "scan")?;
    fs::write(DETECTOR, "scan")?;
    fs::read_to_string(DETECTOR)
}
