/// Prints a line to standard output; a closed pipe is an error, not a panic.
macro_rules! print_line {
    ($($text:tt)*) => {
        std::io::Write::write_fmt(
            &mut std::io::stdout(),
            format_args!("{}\n", format_args!($($text)*)),
        )
    };
}

mod explain;
mod operate;
mod output;
mod show;
mod size;
mod transfer;
mod watch;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use self::{explain::Memory, output::Output};

/// Inspects vdma devices and moves data to and from their memory.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  \
        vdma list\n  \
        vdma info /dev/vdma0 -o json\n  \
        vdma write /dev/vdma0 --offset 1M --input disk.img\n  \
        vdma read /dev/vdma0 --offset 1M --length 64K | sha256sum\n  \
        vdma explain --length 20K --memory huge\n  \
        vdma trace --count 3 --timeout 10 -- dd if=/dev/zero of=/dev/vdma0 bs=64K count=3\n  \
        vdma top\n\n\
        A device node is a file like any other: dd, cmp, xxd and fio work on it too."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lists the vdma devices of this system
    List(Format),
    /// Shows the properties of a device and its statistics
    Info {
        /// The device node
        #[arg(default_value = "/dev/vdma0")]
        device: PathBuf,
        #[command(flatten)]
        format: Format,
    },
    /// Copies device memory to a file or to standard output
    Read {
        #[command(flatten)]
        range: Range,
        /// Bytes to read; K, M and G are powers of 1024 [default: to the end of device memory]
        #[arg(short, long, value_parser = size::parse)]
        length: Option<u64>,
        /// The file to write; "-" is standard output
        #[arg(short = 'O', long, default_value = "-", value_name = "FILE")]
        output: PathBuf,
    },
    /// Copies a file or standard input to device memory
    Write {
        #[command(flatten)]
        range: Range,
        /// Most bytes to write; K, M and G are powers of 1024 [default: all of the input]
        #[arg(short, long, value_parser = size::parse)]
        length: Option<u64>,
        /// The file to read; "-" is standard input
        #[arg(short, long, default_value = "-", value_name = "FILE")]
        input: PathBuf,
    },
    /// Fills device memory with a pattern of eight bytes
    Fill {
        #[command(flatten)]
        range: Range,
        /// Bytes to fill; K, M and G are powers of 1024 [default: to the end of device memory]
        #[arg(short, long, value_parser = size::parse)]
        length: Option<u64>,
        /// The pattern, as a number: its lowest byte comes first; 0x for hexadecimal
        #[arg(short, long, default_value = "0", value_parser = pattern)]
        pattern: u64,
    },
    /// Moves device memory within the device; the ranges may overlap
    Move {
        /// The device node
        #[arg(default_value = "/dev/vdma0")]
        device: PathBuf,
        /// Offset to move to
        #[arg(long, value_parser = size::parse)]
        to: u64,
        /// Offset to move from
        #[arg(long, value_parser = size::parse)]
        from: u64,
        /// Bytes to move; K, M and G are powers of 1024
        #[arg(short, long, value_parser = size::parse)]
        length: u64,
    },
    /// Prints the CRC32C of device memory, which the device computes
    Crc32c {
        #[command(flatten)]
        range: Range,
        /// Bytes; K, M and G are powers of 1024 [default: to the end of device memory]
        #[arg(short, long, value_parser = size::parse)]
        length: Option<u64>,
        #[command(flatten)]
        format: Format,
    },
    /// Zeroes device memory, and frees the host's memory behind it
    Discard {
        #[command(flatten)]
        range: Range,
        /// Bytes; K, M and G are powers of 1024 [default: to the end of device memory]
        #[arg(short, long, value_parser = size::parse)]
        length: Option<u64>,
    },
    /// Makes everything written before durable
    Flush {
        /// The device node
        #[arg(default_value = "/dev/vdma0")]
        device: PathBuf,
    },
    /// Shows every kind of address that a buffer has on its way to the device (as root)
    Explain {
        #[command(flatten)]
        range: Range,
        /// Bytes of the buffer, up to 4M; K, M and G are powers of 1024
        #[arg(short, long, default_value = "16K", value_parser = size::parse)]
        length: u64,
        /// Offset of the buffer in its first page
        #[arg(long, default_value_t = 0)]
        skew: usize,
        /// Kind of memory of the buffer
        #[arg(short, long, value_enum, default_value_t = Memory::Anonymous)]
        memory: Memory,
        /// The file to map, with `--memory file`
        #[arg(short, long)]
        file: Option<PathBuf>,
        #[command(flatten)]
        format: Format,
    },
    /// Prints requests as they complete (as root)
    Trace {
        /// The device node
        #[arg(default_value = "/dev/vdma0")]
        device: PathBuf,
        /// Number of requests to print
        #[arg(short, long)]
        count: Option<u64>,
        /// Seconds after which to end; an error if requests are still missing, or COMMAND still
        /// runs
        #[arg(
            short,
            long,
            value_name = "SECONDS",
            alias = "seconds",
            short_alias = 's'
        )]
        timeout: Option<f64>,
        #[command(flatten)]
        format: Format,
        /// A command to run when the trace is attached; it ends with the command, with its exit
        /// status
        #[arg(last = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Shows rates and latencies of each operation, repeatedly (as root)
    Top {
        /// The device node
        #[arg(default_value = "/dev/vdma0")]
        device: PathBuf,
        /// Seconds between two screens
        #[arg(short, long, default_value_t = 1.0)]
        interval: f64,
        /// Number of screens to show
        #[arg(short, long)]
        rounds: Option<u64>,
    },
}

/// Parses a number; hexadecimal with the prefix 0x.
fn pattern(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|error| format!("{error}; write a number such as 255 or 0xff"))
}

#[derive(Debug, Args)]
struct Format {
    /// Format of the output
    #[arg(short, long, value_enum, default_value_t = Output::Text, value_name = "FORMAT")]
    output: Output,
}

#[derive(Debug, Args)]
struct Range {
    /// The device node
    #[arg(default_value = "/dev/vdma0")]
    device: PathBuf,
    /// Offset in device memory, in bytes; K, M and G are powers of 1024
    #[arg(short = 's', long, default_value = "0", value_parser = size::parse)]
    offset: u64,
}

impl Cli {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::List(format) => show::list(format.output),
            Command::Info { device, format } => show::info(&device, format.output),
            Command::Read {
                range,
                length,
                output,
            } => transfer::read(&range.device, range.offset, length, &output),
            Command::Write {
                range,
                length,
                input,
            } => transfer::write(&range.device, range.offset, length, &input),
            Command::Fill {
                range,
                length,
                pattern,
            } => operate::fill(&range.device, range.offset, length, pattern),
            Command::Move {
                device,
                to,
                from,
                length,
            } => operate::move_within(&device, to, from, length),
            Command::Crc32c {
                range,
                length,
                format,
            } => operate::checksum(&range.device, range.offset, length, format.output),
            Command::Discard { range, length } => {
                operate::discard(&range.device, range.offset, length)
            }
            Command::Flush { device } => operate::flush(&device),
            Command::Explain {
                range,
                length,
                skew,
                memory,
                file,
                format,
            } => explain::explain(&explain::Request {
                device: &range.device,
                offset: range.offset,
                length,
                skew,
                memory: &memory,
                file: file.as_ref(),
                output: format.output,
            }),
            Command::Trace {
                device,
                count,
                timeout,
                format,
                command,
            } => {
                let limits = watch::Limits {
                    count,
                    timeout,
                    command,
                };
                return watch::trace(&device, &limits, format.output);
            }
            Command::Top {
                device,
                interval,
                rounds,
            } => watch::top(&device, interval, rounds),
        }
        .map(|()| ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
