mod show;
mod size;
mod transfer;

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Looks at vdma devices and moves data to and from their memory.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  \
        vdma list\n  \
        vdma info /dev/vdma0 -o json\n  \
        vdma write /dev/vdma0 --offset 1M --input disk.img\n  \
        vdma read /dev/vdma0 --offset 1M --length 64K | sha256sum\n\n\
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
    /// Shows what a device is and what went through it
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
        /// Where to put them; "-" is standard output
        #[arg(short = 'O', long, default_value = "-", value_name = "FILE")]
        output: PathBuf,
    },
    /// Copies a file or standard input to device memory
    Write {
        #[command(flatten)]
        range: Range,
        /// Bytes to write at the most; K, M and G are powers of 1024 [default: all of the input]
        #[arg(short, long, value_parser = size::parse)]
        length: Option<u64>,
        /// What to write; "-" is standard input
        #[arg(short, long, default_value = "-", value_name = "FILE")]
        input: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Format {
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Text, value_name = "FORMAT")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Text,
    /// For programs; the field `version` changes when a field changes its meaning
    Json,
}

#[derive(Debug, Args)]
struct Range {
    /// The device node
    #[arg(default_value = "/dev/vdma0")]
    device: PathBuf,
    /// Where in device memory to begin, in bytes; K, M and G are powers of 1024
    #[arg(short = 's', long, default_value = "0", value_parser = size::parse)]
    offset: u64,
}

impl Cli {
    pub(crate) fn run(self) -> anyhow::Result<()> {
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
