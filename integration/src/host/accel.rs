//! Which accelerator to use. `/dev/kvm` can be there and useless, so a guest is really booted.

use std::{
    collections::BTreeMap,
    fs::{self, File},
};

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::host::{cache, cache::Cache, progress};

/// What was found out, by host kernel and QEMU version.
const RECORD: &str = "accel.json";

/// What a record says where there was no reason not to try.
const OPENS: &str = "opens";

/// Which accelerator runs the guest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Accel {
    /// The host's own virtualization.
    Kvm,
    /// Emulation, on any machine.
    Tcg,
}

impl Accel {
    /// The name that QEMU and `--accel` have for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// What `--accel` says.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(crate) enum AccelChoice {
    /// KVM where it really boots a guest, else TCG.
    #[default]
    Auto,
    /// KVM, or fail.
    Kvm,
    /// QEMU's emulation.
    Tcg,
}

/// Decides; `boots` says whether a guest comes up with KVM, and is asked once per host kernel and
/// QEMU version.
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

/// Whether a guest has booted with KVM where it could be tried with this host kernel: `None` if it never
/// was.
pub(crate) fn tried(cache: &Cache) -> Option<bool> {
    let (begin, end) = (format!("{},", host_kernel()), format!("/dev/kvm {OPENS}"));
    recorded(cache)
        .into_iter()
        .filter(|(key, _)| key.starts_with(&begin) && key.ends_with(&end))
        .map(|(_, works)| works)
        .next_back()
}

/// Everything that has been found out on this machine.
fn recorded(cache: &Cache) -> BTreeMap<String, bool> {
    fs::read(cache.path(RECORD))
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default()
}

/// Why KVM cannot even be tried.
pub(crate) fn kvm_unusable() -> Option<String> {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => None,
        Err(error) => Some(format!("/dev/kvm: {error}")),
    }
}
