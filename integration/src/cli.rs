//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    host::{accel::AccelChoice, mirror::MIRROR_VARIABLE},
    test::select::Partition,
};

/// Boot guests with the vdma device and driver, and run commands and tests in them.
#[derive(Debug, Parser)]
#[command(
    name = "cargo vm",
    bin_name = "cargo vm",
    version,
    max_term_width = 100
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// A subcommand.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Boot a guest with device and driver, and demonstrate every part on real data
    Demo(Demo),
    /// Run a command in a fresh guest with the driver loaded
    ///
    /// Exit status: the command's own; 124 on timeout; 127 if there is no such program; 128 + N if
    /// signal N killed it; 255 if the guest died or its kernel complained (BUG, WARNING, Oops,
    /// lockdep, KASAN, kmemleak, hung task); 2 on wrong usage.
    Exec(Exec),
    /// Open an interactive root shell in a fresh guest with the driver loaded
    Shell(Shell),
    /// Run the workspace's unit tests, every suite in guests, and the harness's own scenarios
    ///
    /// Exit status: 0 if nothing failed, 1 if something did, 2 on wrong usage.
    Test(Test),
    /// Compare the device with virtio-blk in one guest; print a table, write JSON and SVG
    ///
    /// Times depend on the load of the machine. With --instructions the guest's instructions are
    /// counted instead, by function; these counts hardly depend on it.
    Bench(BenchOptions),
    /// Report what this machine has and lacks, with a remedy for each
    Doctor,
    /// Remove everything that the other commands cached
    Clean,
}

/// `cargo vm demo`.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    #[command(flatten)]
    pub(crate) environment: EnvironmentOptions,

    /// Show QEMU's command line and the guest's console
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

/// `cargo vm exec`.
#[derive(Debug, Args)]
pub(crate) struct Exec {
    #[command(flatten)]
    pub(crate) guest: GuestOptions,

    /// Kill the command after this many seconds (the guest's boot does not count)
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u64>,

    /// The command and its arguments
    #[arg(required = true, last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// `cargo vm shell`.
#[derive(Debug, Args)]
pub(crate) struct Shell {
    #[command(flatten)]
    pub(crate) guest: GuestOptions,

    /// End the shell after this many seconds
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u64>,
}

/// The kinds of tests, by where they run.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum TestKind {
    /// Unit tests, on the host
    Units,
    /// Suites, in guests
    Suites,
    /// Scenarios, on the host while a guest runs
    Scenarios,
}

/// `cargo vm test`.
#[derive(Debug, Args)]
pub(crate) struct Test {
    /// Run only tests whose name contains this
    pub(crate) filter: Option<String>,

    /// Run only tests of this kind (repeatable)
    #[arg(long, value_name = "KIND", value_enum)]
    pub(crate) only: Vec<TestKind>,

    /// Print the tests' names instead of running them
    #[arg(long)]
    pub(crate) list: bool,

    /// Also write the results to this file, in JUnit format
    #[arg(long, value_name = "FILE")]
    pub(crate) junit: Option<PathBuf>,

    /// Run the K-th of N equal parts of the tests
    #[arg(long, value_name = "K/N")]
    pub(crate) partition: Option<Partition>,

    #[command(flatten)]
    pub(crate) environment: EnvironmentOptions,

    /// Show QEMU's command lines and the guests' consoles
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

/// `cargo vm bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchOptions {
    /// Number of runs of each job; jobs alternate
    #[arg(long, value_name = "N", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,

    /// Duration of each run of a job, in seconds
    #[arg(long, value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub(crate) seconds: u32,

    /// Count the guest's instructions per request instead of measuring times (TCG only)
    #[arg(long, conflicts_with = "seconds")]
    pub(crate) instructions: bool,

    /// Write bench.json and bench.svg, or instructions.json, to this directory
    #[arg(long, value_name = "DIRECTORY", default_value = "target/bench")]
    pub(crate) output: PathBuf,

    #[command(flatten)]
    pub(crate) environment: EnvironmentOptions,

    /// Show QEMU's command line and the guest's console
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

/// Options of the commands that boot one guest.
#[derive(Clone, Debug, Args)]
pub(crate) struct GuestOptions {
    #[command(flatten)]
    pub(crate) environment: EnvironmentOptions,

    /// Copy a file or directory of the host into the guest (default target: /root/NAME;
    /// repeatable)
    #[arg(long, value_name = "HOST_PATH[:GUEST_PATH]", value_parser = parse_copy)]
    pub(crate) copy: Vec<(PathBuf, PathBuf)>,

    /// Install this Debian package in the guest (repeatable)
    #[arg(long, value_name = "DEBIAN_PACKAGE", value_parser = parse_package)]
    pub(crate) package: Vec<String>,

    /// Pass this argument to each device's backend (repeatable)
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) device_arg: Vec<String>,

    /// Pass this argument to QEMU (repeatable)
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) qemu_arg: Vec<String>,

    /// Number of devices
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(0..=8))]
    pub(crate) devices: u32,

    /// Number of processors
    #[arg(long, value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) cpus: u32,

    /// Memory of the guest (suffixes M and G)
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_memory)]
    pub(crate) memory: u64,

    /// Boot a guest without devices and driver
    #[arg(long)]
    pub(crate) no_driver: bool,

    /// Show QEMU's command line and the guest's console
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

/// Options of the commands that boot guests.
#[derive(Clone, Debug, Args)]
pub(crate) struct EnvironmentOptions {
    /// Kernel of the guest: stock (the newest), debug (KASAN, lockdep, kmemleak; built once, in
    /// about ten minutes), a series (7.2), a version, a release, or the path (with a slash) of a
    /// tree in which a kernel has been built
    #[arg(long, value_name = "KERNEL", default_value = "stock")]
    pub(crate) kernel: String,

    /// Accelerator
    #[arg(long, value_enum, default_value_t)]
    pub(crate) accel: AccelChoice,

    /// Debian mirror for all packages (default: the one that this host uses)
    #[arg(long, value_name = "URL", env = MIRROR_VARIABLE)]
    pub(crate) mirror: Option<String>,

    /// Check the mirror for newer packages and kernels
    #[arg(long)]
    pub(crate) refresh: bool,
}

/// `HOST_PATH[:GUEST_PATH]`.
fn parse_copy(text: &str) -> Result<(PathBuf, PathBuf), String> {
    let (from, to) = match text.split_once(':') {
        Some((from, to)) => (from, Some(to)),
        None => (text, None),
    };
    let from_path = PathBuf::from(from);
    if !from_path.exists() {
        return Err(format!("{from} does not exist on this host"));
    }
    let to = match to {
        Some(to) if to.starts_with('/') => PathBuf::from(to),
        Some(to) => return Err(format!("the guest path {to:?} has to begin with /")),
        None => {
            let name = std::path::absolute(&from_path)
                .ok()
                .and_then(|path| path.file_name().map(ToOwned::to_owned))
                .ok_or_else(|| format!("{from} has no name; give a guest path: {from}:/PATH"))?;
            PathBuf::from("/root").join(name)
        }
    };
    Ok((from_path, to))
}

/// A Debian package's name (Debian policy, section 5.6.7).
fn parse_package(text: &str) -> Result<String, String> {
    let valid = text.len() >= 2
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c));
    if valid {
        Ok(text.to_owned())
    } else {
        Err("not the name of a Debian package".to_owned())
    }
}

/// Memory in MiB from `512M`, `2G` or plain bytes.
fn parse_memory(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.trim_end_matches(['K', 'M', 'G', 'k', 'm', 'g']) {
        number if number.len() == text.len() => (number, 1),
        number => {
            let unit = match &text[number.len()..] {
                "K" | "k" => 1 << 10,
                "M" | "m" => 1 << 20,
                "G" | "g" => 1 << 30,
                _ => return Err("not a size such as 512M or 2G".to_owned()),
            };
            (number, unit)
        }
    };
    let bytes = number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit))
        .ok_or("not a size such as 512M or 2G")?;
    let mib = bytes >> 20;
    if bytes & ((1 << 20) - 1) != 0 || mib < 256 {
        return Err("a guest's memory is a whole number of MiB, at least 256M".to_owned());
    }
    Ok(mib)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn memory_is_whole_mebibytes() {
        assert_eq!(parse_memory("512M"), Ok(512));
        assert_eq!(parse_memory("2G"), Ok(2048));
        assert_eq!(parse_memory("1073741824"), Ok(1024));
        for text in [
            "",
            "M",
            "1T",
            "64M",
            "200000K1",
            "-1G",
            "99999999999999999999G",
            "1GG",
        ] {
            assert!(parse_memory(text).is_err(), "{text}");
        }
    }

    #[test]
    fn copies_go_to_roots_home_unless_told_otherwise() {
        let path = |text: &str| parse_copy(text).map(|(_, to)| to.display().to_string());
        assert_eq!(path("Cargo.toml").unwrap(), "/root/Cargo.toml");
        assert_eq!(path("src/../Cargo.toml:/etc/x").unwrap(), "/etc/x");
        assert!(path("Cargo.toml:etc/x").is_err());
        assert!(path("no-such-file").is_err());
    }

    #[test]
    fn package_names_cannot_smuggle_options() {
        assert!(parse_package("fio").is_ok());
        assert!(parse_package("libstdc++6").is_ok());
        for text in ["", "-y", "a b", "fio=1", "../x", "A"] {
            assert!(parse_package(text).is_err(), "{text}");
        }
    }
}
