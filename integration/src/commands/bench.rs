//! `cargo vm bench`: the device compared with virtio-blk, as a table, JSON and SVG.

use std::{
    fs::{self, File},
    io::Write as _,
    path::PathBuf,
};

use anyhow::{Context as _, Result};

use crate::{
    cli::BenchOptions,
    failure::RunFailure,
    host::{accel::AccelChoice, cache::Cache, progress},
    measure::{chart, guest::PACKAGES, instructions, table, times},
    testbed::{boot::Testbed, provide::Wanted},
};

/// Measures and returns the exit status.
pub(crate) fn run(arguments: &BenchOptions) -> Result<u8> {
    let cache = Cache::open()?;
    let accel = match (arguments.instructions, arguments.environment.accel) {
        (true, AccelChoice::Kvm) => {
            let why = "--instructions works with TCG only; omit --accel kvm";
            return Err(RunFailure::Usage(why.to_owned()).into());
        }
        (true, _) => AccelChoice::Tcg,
        (false, accel) => accel,
    };
    let report = Report::create(
        arguments,
        if arguments.instructions {
            "instructions.json"
        } else {
            "bench.json"
        },
    )?;
    let packages = PACKAGES.iter().map(|&name| name.to_owned());
    let testbed = Testbed::provide(
        &cache,
        &Wanted {
            mirror: arguments.environment.mirror.clone(),
            refresh: arguments.environment.refresh,
            kernel: arguments.environment.kernel.clone(),
            package_sets: vec![packages.collect()],
            accel,
            driver: true,
            counting_plugin: arguments.instructions,
        },
    )?;
    if arguments.instructions {
        let counts = instructions::run(&testbed, arguments.rounds, arguments.verbose)?;
        report.write(&counts)?;
        return print(&instructions::table(&counts), &[report.path]);
    }
    let measurements = times::run(
        &testbed,
        arguments.rounds,
        arguments.seconds,
        arguments.verbose,
    )?;
    report.write(&measurements)?;
    let svg = arguments.output.join("bench.svg");
    chart::draw(&measurements, &svg)?;
    print(&table::of(&measurements), &[report.path, svg])
}

/// The file with the results. It is created first, so that a failure to do so wastes no
/// measurement.
struct Report {
    path: PathBuf,
    file: File,
}

impl Report {
    fn create(arguments: &BenchOptions, name: &str) -> Result<Self> {
        fs::create_dir_all(&arguments.output)
            .with_context(|| format!("cannot create {}", arguments.output.display()))?;
        let path = arguments.output.join(name);
        let file =
            File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { path, file })
    }

    fn write(&self, measured: &impl serde::Serialize) -> Result<()> {
        serde_json::to_writer_pretty(&self.file, measured)
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

fn print(table: &str, files: &[PathBuf]) -> Result<u8> {
    write!(std::io::stdout(), "{table}").context("cannot write to standard output")?;
    let files: Vec<String> = files
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    progress::say(&format!("vdma: results are in {}", files.join(" and ")));
    Ok(0)
}
