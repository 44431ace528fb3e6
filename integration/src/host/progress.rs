//! Progress messages for slow steps: a spinner on a terminal, plain lines elsewhere.
//!
//! A step that ends within [`QUIET_FOR`] is never shown, so a warm run prints nothing.

use std::{
    io::IsTerminal as _,
    sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Steps are reported after this time.
const QUIET_FOR: Duration = Duration::from_secs(2);

/// Steps of every run are reported only after this time.
const QUIET_FOR_PASSING: Duration = Duration::from_secs(10);

static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);
static STEPS: Mutex<Vec<Shown>> = Mutex::new(Vec::new());
static CHANGED: Condvar = Condvar::new();
static TICKER: LazyLock<()> = LazyLock::new(|| {
    std::thread::spawn(report_slow_steps);
});

struct Shown {
    id: u64,
    text: String,
    since: Instant,
    passing: bool,
    bar: Option<ProgressBar>,
    announced: bool,
}

/// A step in progress; dropping it prints the time it took.
#[must_use]
pub(crate) struct Step {
    id: u64,
}

impl Shown {
    /// The time at which the step is to be reported.
    fn due(&self, terminal: bool) -> Instant {
        if self.passing && !terminal {
            self.since + QUIET_FOR_PASSING
        } else {
            self.since + QUIET_FOR
        }
    }
}

/// Begins a step called `text` ("building the guest image").
pub(crate) fn step(text: impl Into<String>) -> Step {
    begin(text.into(), false)
}

/// Begins a step that is part of every run: a terminal shows it while it lasts, and nothing
/// remains of it.
pub(crate) fn passing(text: impl Into<String>) -> Step {
    begin(text.into(), true)
}

fn begin(text: String, passing: bool) -> Step {
    LazyLock::force(&TICKER);
    let mut steps = steps();
    let id = steps.last().map_or(0, |last| last.id + 1);
    steps.push(Shown {
        id,
        text,
        since: Instant::now(),
        passing,
        bar: None,
        announced: false,
    });
    CHANGED.notify_all();
    Step { id }
}

/// Prints a line, above any spinner.
pub(crate) fn say(text: &str) {
    BARS.suspend(|| eprintln!("{text}"));
}

impl Drop for Step {
    fn drop(&mut self) {
        let mut steps = steps();
        let Some(position) = steps.iter().position(|shown| shown.id == self.id) else {
            return;
        };
        let shown = steps.remove(position);
        drop(steps);
        if let Some(bar) = &shown.bar {
            bar.finish_and_clear();
            BARS.remove(bar);
        }
        if shown.announced && !shown.passing {
            let seconds = shown.since.elapsed().as_secs_f64();
            say(&format!("vdma: {} ({seconds:.1} s)", shown.text));
        }
    }
}

fn steps() -> MutexGuard<'static, Vec<Shown>> {
    STEPS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn report_slow_steps() {
    let terminal = std::io::stderr().is_terminal();
    let mut guard = steps();
    loop {
        let now = Instant::now();
        for shown in guard.iter_mut().filter(|shown| !shown.announced) {
            if now < shown.due(terminal) {
                continue;
            }
            shown.announced = true;
            if terminal {
                let bar = BARS.add(ProgressBar::new_spinner());
                if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
                    bar.set_style(style);
                }
                bar.set_elapsed(now - shown.since);
                bar.set_message(shown.text.clone());
                bar.enable_steady_tick(Duration::from_millis(120));
                shown.bar = Some(bar);
            } else {
                eprintln!("vdma: {} ...", shown.text);
            }
        }
        let next = guard
            .iter()
            .filter(|shown| !shown.announced)
            .map(|shown| shown.due(terminal))
            .min();
        guard = match next {
            Some(at) => {
                CHANGED
                    .wait_timeout(guard, at.saturating_duration_since(Instant::now()))
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
            None => CHANGED.wait(guard).unwrap_or_else(PoisonError::into_inner),
        };
    }
}
