//! `cargo vm bench`: the device beside virtio-blk, as a table, JSON and SVG.

use anyhow::{Context as _, Result};
use std::fs::{self, File};
use std::io::Write as _;

use crate::cache::Cache;
use crate::cli::BenchOptions;
use crate::guest::{Bench, Wanted};
use crate::measure::{self, chart, table};
use crate::progress;

/// Measures; gives the exit status.
pub(crate) fn run(arguments: &BenchOptions) -> Result<u8> {
    let cache = Cache::open()?;
    fs::create_dir_all(&arguments.output)
        .with_context(|| format!("cannot create {}", arguments.output.display()))?;
    let json = arguments.output.join("bench.json");
    let svg = arguments.output.join("bench.svg");
    let mut json_file =
        File::create(&json).with_context(|| format!("cannot create {}", json.display()))?;
    let packages = measure::PACKAGES.iter().map(|&name| name.to_owned());
    let bench = Bench::provide(
        &cache,
        &Wanted {
            mirror: arguments.environment.mirror.clone(),
            refresh: arguments.environment.refresh,
            kernel: arguments.environment.kernel.clone(),
            package_sets: vec![packages.collect()],
            accel: arguments.environment.accel,
            driver: true,
        },
    )?;
    let measurements = measure::run(
        &bench,
        arguments.rounds,
        arguments.seconds,
        arguments.verbose,
    )?;
    serde_json::to_writer_pretty(&mut json_file, &measurements)
        .with_context(|| format!("cannot write {}", json.display()))?;
    chart::draw(&measurements, &svg)?;
    write!(std::io::stdout(), "{}", table::of(&measurements))
        .context("cannot write to standard output")?;
    progress::say(&format!(
        "vdma: the same as {} and {}",
        json.display(),
        svg.display()
    ));
    Ok(0)
}
