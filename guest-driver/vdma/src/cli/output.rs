//! What the subcommands print, and in which format.

use clap::ValueEnum;
use serde_json::Value;

/// The format of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// Columns of text
    Text,
    /// A stable format for programs; the field `version` changes when a field changes its meaning
    Json,
}

/// Version of the JSON output.
pub(super) const JSON_VERSION: u32 = 1;

pub(super) fn print_json(value: &Value) -> anyhow::Result<()> {
    print_line!("{}", serde_json::to_string_pretty(value)?)?;
    Ok(())
}

/// A byte count for display, in the largest unit that is exact.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [(u32, &str); 3] = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    UNITS
        .iter()
        .find(|(shift, _)| bytes != 0 && bytes.trailing_zeros() >= *shift)
        .map_or_else(
            || format!("{bytes} B"),
            |(shift, unit)| format!("{} {unit}", bytes >> shift),
        )
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_use_the_largest_unit_that_is_exact() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(4097), "4097 B");
        assert_eq!(size(64 << 10), "64 KiB");
        assert_eq!(size(1536 << 20), "1536 MiB");
        assert_eq!(size(1 << 30), "1 GiB");
    }
}
