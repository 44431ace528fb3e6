//! The guest's part of `cargo vm demo`: demonstrates every part on real data, and fails if any of
//! them does not work.

mod addresses;
mod balance;
mod bar;
mod buffer;
mod demo;
mod fault;
mod function;
mod holdings;
mod operations;
mod transfer;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use demo::Demo;
use holdings::Holdings;

/// Title and function of a step.
type Step = (&'static str, fn(&Demo) -> Result<()>);

/// The steps, in order.
const STEPS: &[Step] = &[
    ("the PCI function and its driver", function::show),
    (
        "stores through the mapped BAR reach the backend",
        bar::guest_to_backend,
    ),
    (
        "what the backend holds is loaded through the BAR",
        bar::backend_to_guest,
    ),
    (
        "device memory is mapped on first access, in huge pages where possible",
        fault::show,
    ),
    (
        "the addresses of this program's memory on its way to the device",
        addresses::show,
    ),
    (
        "a file goes from pinned user pages to device memory and back, through io_uring",
        transfer::show,
    ),
    (
        "operations on buffers that are mapped for DMA once",
        operations::show,
    ),
    ("the driver has released everything", balance::show),
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vdma-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let file = std::env::args_os()
        .nth(1)
        .map(PathBuf::from)
        .context("usage: vdma-demo FILE")?;
    let demo = Demo {
        before: Holdings::now()?,
        device: vdma::Device::open("/dev/vdma0")?,
        file,
    };
    for (number, (title, step)) in STEPS.iter().enumerate() {
        println!("\n{}. {title}", number + 1);
        step(&demo).with_context(|| format!("step {} ({title})", number + 1))?;
    }
    Ok(())
}
