//! Measurements as a chart: a bar for each ratio.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::times::Measurements;

/// Height of a bar and the space around it, in pixels.
const ROW: u32 = 26;
/// Width of the names to the left of the bars, in pixels.
const NAMES: i32 = 520;
/// Width of the chart, in pixels.
const WIDTH: u32 = 1100;

/// Draws the ratios of device to peer into the file `path`.
pub(crate) fn draw(measurements: &Measurements, path: &Path) -> Result<()> {
    draw_rows(measurements, path)
        .map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
}

fn draw_rows(
    measurements: &Measurements,
    path: &Path,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let rows: Vec<_> = measurements
        .comparisons
        .iter()
        .flat_map(|comparison| comparison.peers.iter().map(move |peer| (comparison, peer)))
        .collect();
    let height = ROW * (u32::try_from(rows.len())? + 3);
    let root = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let font = ("sans-serif", 13).into_font();
    let title = format!(
        "vdma / peer (kernel {}, {})",
        measurements.kernel, measurements.accelerator
    );
    root.draw(&Text::new(title, (10, 8), ("sans-serif", 16).into_font()))?;
    let most = rows
        .iter()
        .map(|(_, peer)| peer.ratio)
        .fold(2.0_f64, f64::max);
    #[allow(clippy::cast_possible_truncation)] // A number of pixels.
    let x = |ratio: f64| NAMES + (ratio / most * f64::from(WIDTH as i32 - NAMES - 60)) as i32;
    let row = i32::try_from(ROW)?;
    for (line, (comparison, peer)) in (0_i32..).zip(&rows) {
        let top = row * (line + 2);
        let name = format!("{}: {}", comparison.job, peer.name);
        root.draw(&Text::new(name, (10, top + 4), font.clone()))?;
        let wins = (peer.ratio > 1.0) == comparison.more_is_better;
        let colour = if wins {
            RGBColor(60, 140, 80)
        } else {
            RGBColor(190, 120, 60)
        };
        let bar = [(NAMES, top), (x(peer.ratio), top + row - 8)];
        root.draw(&Rectangle::new(bar, colour.filled()))?;
        let label = format!(
            "{:.2}{}",
            peer.ratio,
            if comparison.more_is_better {
                ""
            } else {
                " (less is better)"
            }
        );
        root.draw(&Text::new(
            label,
            (x(peer.ratio) + 6, top + 4),
            font.clone(),
        ))?;
        if let Some(target) = peer.target {
            let mark = [(x(target), top - 2), (x(target), top + row - 6)];
            root.draw(&PathElement::new(mark, RED.stroke_width(2)))?;
        }
    }
    let one = [
        (x(1.0), row),
        (x(1.0), row * i32::try_from(rows.len() + 2)?),
    ];
    root.draw(&PathElement::new(one, BLACK))?;
    root.present()?;
    Ok(())
}
