//! The verdict on a guest: marks in its kernel log, complaints of its kernel, leaks.

use std::time::{Duration, Instant};

use anyhow::Result;
use guest_agent::{ToGuest, ToHost};

use super::{
    event::Event,
    running::{ANSWER_DEADLINE, Vm},
};
use crate::{
    failure::{GuestFailure, RunFailure},
    vm::kernel_log::{MARK_PREFIX, Splat},
};

/// Limit on the time of a scan for leaks.
const LEAK_DEADLINE: Duration = Duration::from_secs(600);

impl Vm {
    /// Waits until all kernel messages up to now have been read from the console.
    pub(crate) fn sync_kernel_log(&mut self) -> Result<()> {
        let number = self.next_mark;
        self.mark(&format!("sync {number}"))?;
        let deadline = Instant::now() + ANSWER_DEADLINE;
        loop {
            match self.next_event(Some(deadline))? {
                Some(Event::Mark(text)) if text == format!("sync {number}") => {
                    self.next_mark += 1;
                    return Ok(());
                }
                Some(_) => {}
                None => {
                    let what = "a line written to the kernel log did not reach the console";
                    return Err(self.died(GuestFailure::Silent(what.to_owned())));
                }
            }
        }
    }

    /// Writes a line to the kernel log.
    pub(crate) fn mark(&mut self, text: &str) -> Result<()> {
        self.tell(&ToGuest::Mark(format!("{MARK_PREFIX}{text}")))
    }

    /// Waits until a program in the guest writes a mark to the kernel log and returns it. If the
    /// guest is suspended meanwhile, it is woken.
    pub(crate) fn wait_for_mark(&mut self, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            match self.next_event(Some(deadline))? {
                Some(Event::Mark(text)) => return Ok(text),
                Some(Event::Asleep) => {
                    self.execute_qmp("system_wakeup", serde_json::json!({}))?;
                }
                Some(_) => {}
                None => {
                    let what = format!("nothing in the kernel log within {} s", limit.as_secs());
                    return Err(self.died(GuestFailure::Silent(what)));
                }
            }
        }
    }

    /// Removes and returns the kernel's complaints since the last call.
    pub(crate) fn take_splats(&mut self) -> Vec<Splat> {
        self.console.take_splats()
    }

    /// Runs the kernel's leak detector; finds nothing in kernels without one.
    pub(crate) fn leaks(&mut self) -> Result<Option<Splat>> {
        self.tell(&ToGuest::FindLeaks)?;
        let deadline = Instant::now() + LEAK_DEADLINE;
        loop {
            match self.next_event(Some(deadline))? {
                Some(Event::Agent(ToHost::Leaks(report))) => {
                    return Ok((!report.trim().is_empty()).then(|| Splat {
                        lines: report.lines().map(str::to_owned).collect(),
                    }));
                }
                Some(_) => {}
                None => {
                    let what = "the kernel's leak detector did not finish".to_owned();
                    return Err(self.died(GuestFailure::Silent(what)));
                }
            }
        }
    }

    /// Ends a guest that is no longer needed; fails if its kernel complained about itself.
    pub(crate) fn finish(mut self) -> Result<()> {
        let leaks = self.leaks()?;
        self.sync_kernel_log()?;
        self.check_complaints(leaks)
    }

    /// As [`Vm::finish`], for a guest whose agent is no longer reachable: there is no scan for
    /// leaks.
    pub(crate) fn finish_without_agent(mut self) -> Result<()> {
        self.check_complaints(None)
    }

    /// Fails if the kernel complained about itself, on its console or with `leaks`.
    fn check_complaints(&mut self, leaks: Option<Splat>) -> Result<()> {
        let mut splats = self.take_splats();
        splats.extend(leaks);
        if splats.is_empty() {
            return Ok(());
        }
        Err(RunFailure::Splat {
            count: splats.len(),
            text: splats
                .iter()
                .flat_map(|splat| &splat.lines)
                .map(|line| format!("\n    {line}"))
                .collect(),
            log: self.console.log().to_owned(),
        }
        .into())
    }
}
