//! Scans the kernel log line by line for splats, panics and marks.

use guest_agent::FATAL_PREFIX;

/// Prefix of the lines that the harness has the guest write to the kernel log.
pub(crate) const MARK_PREFIX: &str = "vdma-mark: ";

/// Maximum number of lines kept of one splat.
const SPLAT_LINES: usize = 60;

/// Prefixes of the lines with which the kernel reports a defect in itself.
const SPLATS: [&str; 19] = [
    "BUG: ",
    "WARNING: ",
    "Oops: ",
    "Oops:",
    "kernel BUG at",
    "watchdog: BUG: ",
    "UBSAN: ",
    "INFO: possible ",
    "INFO: inconsistent ",
    "INFO: suspicious ",
    "INFO: trying to register non-static key",
    "INFO: rcu",
    "rcu: INFO: rcu",
    "INFO: NMI handler",
    "Unable to handle kernel",
    "page dumped because: ",
    "list_add corruption",
    "list_del corruption",
    "DMA-API: ",
];

/// Texts that indicate a splat anywhere in a line.
const SPLAT_PARTS: [&str; 5] = [
    "blocked for more than",
    "new suspected memory leaks",
    "Kernel stack is corrupted",
    "refcount_t: ",
    // An interrupt without a handler (`__report_bad_irq`).
    " (try booting with the \"irqpoll\" option)",
];

/// The meaning of a line.
#[derive(Debug, PartialEq)]
pub(crate) enum Finding {
    /// The kernel panicked, for this reason.
    Panic(String),
    /// The guest's first process or its agent cannot continue, for this reason.
    Fatal(String),
    /// A mark of the harness.
    Mark(String),
}

/// One defect that the kernel reported in itself.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Splat {
    /// The first line and those that followed.
    pub(crate) lines: Vec<String>,
}

/// Scans the console's bytes and keeps the splats.
#[derive(Default)]
pub(crate) struct Scanner {
    partial: Vec<u8>,
    splats: Vec<Splat>,
    in_splat: bool,
    panicked: bool,
}

impl Scanner {
    /// Scans more bytes; calls `each` for each complete line, without its end.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(&str, Option<Finding>)) {
        for byte in bytes {
            if *byte == b'\n' {
                let line = std::mem::take(&mut self.partial);
                let line = String::from_utf8_lossy(&line);
                let line = line.trim_end_matches('\r');
                let finding = self.line(line);
                each(line, finding);
            } else {
                self.partial.push(*byte);
            }
        }
    }

    /// Removes and returns the splats found so far.
    pub(crate) fn take_splats(&mut self) -> Vec<Splat> {
        self.in_splat = false;
        std::mem::take(&mut self.splats)
    }

    fn line(&mut self, line: &str) -> Option<Finding> {
        let text = message(line);
        if let Some(mark) = text.strip_prefix(MARK_PREFIX) {
            self.in_splat = false;
            return Some(Finding::Mark(mark.to_owned()));
        }
        if let Some(reason) = text.strip_prefix(FATAL_PREFIX) {
            return Some(Finding::Fatal(reason.to_owned()));
        }
        let starts = SPLATS.iter().any(|start| text.starts_with(start))
            || SPLAT_PARTS.iter().any(|part| text.contains(part));
        if self.in_splat {
            if let Some(splat) = self.splats.last_mut()
                && splat.lines.len() < SPLAT_LINES
            {
                splat.lines.push(text.to_owned());
            }
            if text.starts_with("---[ end trace") {
                self.in_splat = false;
            }
        } else if starts {
            self.in_splat = true;
            self.splats.push(Splat {
                lines: vec![text.to_owned()],
            });
        }
        if !self.panicked
            && let Some((_, reason)) = text.split_once("Kernel panic - not syncing")
        {
            self.panicked = true;
            let reason = reason.trim_start_matches(':').trim();
            return Some(Finding::Panic(reason.to_owned()));
        }
        None
    }
}

/// A console line without its time stamp and, where the kernel prints one, its caller.
fn message(line: &str) -> &str {
    let mut text = line;
    for _ in 0..2 {
        let Some(rest) = text.strip_prefix('[') else {
            break;
        };
        let Some((inside, rest)) = rest.split_once("] ") else {
            break;
        };
        let is_time = inside.trim().parse::<f64>().is_ok();
        let is_caller = inside.trim_start().starts_with(['T', 'C']);
        if !is_time && !is_caller {
            break;
        }
        text = rest;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(text: &str) -> (Scanner, Vec<Finding>) {
        let mut scanner = Scanner::default();
        let mut findings = Vec::new();
        // In small pieces, as they come.
        for piece in text.as_bytes().chunks(3) {
            scanner.feed(piece, |_, finding| findings.extend(finding));
        }
        (scanner, findings)
    }

    #[test]
    fn a_quiet_boot_has_no_findings() {
        let (mut scanner, findings) = scan(
            "[    0.000000] Linux version 7.3.4+deb13-cloud-amd64\r\n\
             [    0.100000] Spectre V2 : WARNING: Unprivileged eBPF is enabled\r\n\
             [    0.200000] [Firmware Bug]: TSC doesn't count\r\n\
             [    1.000000] vdma: module verification failed: tainting kernel\r\n\
             [    2.000000] traps: cat[12] general protection fault ip:1 sp:2\r\n",
        );
        assert!(findings.is_empty(), "{findings:?}");
        assert!(scanner.take_splats().is_empty());
    }

    #[test]
    fn splats_are_kept_to_their_end() {
        let (mut scanner, _) = scan(
            "[    3.1] ------------[ cut here ]------------\n\
             [    3.1] WARNING: CPU: 0 PID: 1 at a.c:3 f+0x1/0x2\n\
             [    3.1] Call Trace:\n\
             [    3.1] ---[ end trace 0000000000000000 ]---\n\
             [    3.2] all is well\n\
             [    4.1] [   T12] BUG: KASAN: slab-use-after-free in f+0x1/0x2\n",
        );
        let splats = scanner.take_splats();
        assert_eq!(splats.len(), 2);
        assert_eq!(splats[0].lines.len(), 3);
        assert!(splats[1].lines[0].starts_with("BUG: KASAN"));
        assert!(scanner.take_splats().is_empty());
    }

    #[test]
    fn every_kind_of_complaint_counts() {
        for line in [
            "INFO: task fio:123 blocked for more than 30 seconds.",
            "watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [sh:1]",
            "WARNING: possible circular locking dependency detected",
            "INFO: possible recursive locking detected",
            "kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
            "UBSAN: array-index-out-of-bounds in a.c:3:1",
            "Oops: general protection fault, probably for non-canonical address 0x1: 0000 [#1]",
            "BUG: sleeping function called from invalid context at a.c:1",
            "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
            "irq 16: not handled (try booting with the \"irqpoll\" option)",
        ] {
            let (mut scanner, _) = scan(&format!("[    1.000000] {line}\n"));
            assert_eq!(scanner.take_splats().len(), 1, "{line}");
        }
    }

    #[test]
    fn a_panic_is_reported_once_with_its_reason() {
        let (_, findings) = scan(
            "[  9.0] Kernel panic - not syncing: sysrq triggered crash\n\
             [  9.1] ---[ end Kernel panic - not syncing: sysrq triggered crash ]---\n",
        );
        assert_eq!(
            findings,
            [Finding::Panic("sysrq triggered crash".to_owned())]
        );
    }

    #[test]
    fn marks_and_fatal_lines_are_found() {
        let (_, findings) = scan(&format!(
            "[    1.0] {MARK_PREFIX}end 7\n[    1.1] {FATAL_PREFIX}no disk\n"
        ));
        assert_eq!(
            findings,
            [
                Finding::Mark("end 7".to_owned()),
                Finding::Fatal("no disk".to_owned())
            ]
        );
    }
}
