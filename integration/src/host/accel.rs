//! The choice of an accelerator. `/dev/kvm` may exist and still be useless, so KVM is tested by
//! booting a guest.

use std::{
    collections::BTreeMap,
    fs::{self, File},
};

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::host::{cache, cache::Cache, progress};

/// File in the cache with the results of tests, by host kernel and QEMU version.
const RECORD: &str = "accel.json";

/// Marks a result of a machine on which `/dev/kvm` could be opened.
const OPENS: &str = "opens";

/// Which accelerator runs the guest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Accel {
    /// Hardware virtualization.
    Kvm,
    /// Emulation, on any machine.
    Tcg,
}

impl Accel {
    /// Returns its name in QEMU's options and in `--accel`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// The values of `--accel`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(crate) enum AccelChoice {
    /// KVM if a guest boots with it, else TCG.
    #[default]
    Auto,
    /// KVM; fail without it.
    Kvm,
    /// Emulation by QEMU.
    Tcg,
}

/// Chooses the accelerator. `boots` tells whether a guest comes up with KVM; it is called once for
/// each host kernel and QEMU version.
pub(crate) fn decide(
    choice: AccelChoice,
    cache: &Cache,
    qemu_version: &str,
    boots: impl FnOnce() -> Result<bool>,
) -> Result<Accel> {
    match choice {
        AccelChoice::Tcg => return Ok(Accel::Tcg),
        AccelChoice::Kvm => {
            if let Some(reason) = kvm_unusable() {
                bail!("--accel kvm: {reason}; --accel tcg works everywhere");
            }
            return Ok(Accel::Kvm);
        }
        AccelChoice::Auto => {}
    }
    let unusable = kvm_unusable();
    let key = format!(
        "{}, QEMU {qemu_version}, /dev/kvm {}",
        host_kernel(),
        unusable.as_deref().unwrap_or(OPENS)
    );
    let mut known = recorded(cache);
    if let Some(works) = known.get(&key) {
        return Ok(if *works { Accel::Kvm } else { Accel::Tcg });
    }
    let works = match &unusable {
        Some(reason) => {
            progress::say(&format!("vdma: using TCG: {reason}"));
            false
        }
        None => {
            let works = boots()?;
            if !works {
                progress::say("vdma: using TCG: /dev/kvm opens, but no guest boots with it");
            }
            works
        }
    };
    known.insert(key, works);
    let json = serde_json::to_vec_pretty(&known)?;
    cache::write_atomically(&cache.path(RECORD), &json)?;
    Ok(if works { Accel::Kvm } else { Accel::Tcg })
}

fn host_kernel() -> String {
    let host = rustix::system::uname();
    format!("host kernel {}", host.release().to_string_lossy())
}

/// Returns whether a guest has booted with KVM under this host kernel; `None` if it was never
/// tried.
pub(crate) fn tried(cache: &Cache) -> Option<bool> {
    let (begin, end) = (format!("{},", host_kernel()), format!("/dev/kvm {OPENS}"));
    recorded(cache)
        .into_iter()
        .filter(|(key, _)| key.starts_with(&begin) && key.ends_with(&end))
        .map(|(_, works)| works)
        .next_back()
}

/// All results recorded on this machine.
fn recorded(cache: &Cache) -> BTreeMap<String, bool> {
    fs::read(cache.path(RECORD))
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default()
}

/// Returns the reason why KVM cannot be tried, if there is one.
pub(crate) fn kvm_unusable() -> Option<String> {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => None,
        Err(error) => Some(format!("/dev/kvm: {error}")),
    }
}
