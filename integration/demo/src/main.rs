//! The guest's side of `cargo vm demo`: shows every part at work, on real data, and ends with a
//! failure if any of it is not as it should be.

mod bar;
mod function;

use anyhow::{Context as _, Result};
use std::process::ExitCode;

/// One thing that the demo shows.
type Step = (&'static str, fn(&vdma::Device) -> Result<()>);

/// Everything that it shows, in order.
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
    let device = vdma::Device::open("/dev/vdma0")?;
    for (number, (title, step)) in STEPS.iter().enumerate() {
        println!("\n{}. {title}", number + 1);
        step(&device).with_context(|| format!("step {} ({title})", number + 1))?;
    }
    Ok(())
}
