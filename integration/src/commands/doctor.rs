//! `cargo vm doctor`: what this machine has and lacks, with a remedy for each.

use std::{fs, process::Command};

use anyhow::Result;

use crate::host::{accel, cache::Cache, cargo, mirror, process, requirements};

/// Free space for a first run, in bytes.
const SPACE: u64 = 6 << 30;

/// The result of a check.
enum Finding {
    /// Present; what was found.
    Good(String),
    /// Works with a limitation; the limitation and its remedy.
    Limited(String, String),
    /// Essential and missing; what is missing and its remedy.
    Missing(String, String),
}

/// Prints the findings; fails when something essential is missing.
pub(crate) fn run() -> Result<u8> {
    let mut checks: Vec<(&str, Finding)> = vec![("system", system())];
    for (requirement, met) in requirements::all() {
        checks.push((requirement.program, program(requirement, met)));
    }
    checks.push(("libc.a", static_libc()));
    checks.push(("sandbox", sandbox()));
    checks.push(("memfd", memfd()));
    checks.push(("kvm", kvm()));
    checks.push(("mirror", package_mirror()));
    checks.push(("cargo", rust()));
    checks.push(("cache", cache()));
    let mut missing = 0;
    for (name, finding) in &checks {
        match finding {
            Finding::Good(what) => println!("ok       {name:<12} {what}"),
            Finding::Limited(what, remedy) => {
                println!(
                    "limited  {name:<12} {what}\n         {:<12} -> {remedy}",
                    ""
                );
            }
            Finding::Missing(what, remedy) => {
                missing += 1;
                println!(
                    "missing  {name:<12} {what}\n         {:<12} -> {remedy}",
                    ""
                );
            }
        }
    }
    if missing == 0 {
        println!("this machine has everything that `cargo vm` needs");
        Ok(0)
    } else {
        println!("{missing} of {} checks failed", checks.len());
        Ok(1)
    }
}

fn system() -> Finding {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .map(|value| value.trim_matches('"').to_owned())
    };
    let name = field("PRETTY_NAME").unwrap_or_else(|| "unknown".to_owned());
    let machine = rustix::system::uname();
    if machine.machine().to_bytes() != b"x86_64" {
        return Finding::Missing(
            format!("{name} on {}", machine.machine().to_string_lossy()),
            "guests are x86_64, so the host has to be as well".to_owned(),
        );
    }
    match field("ID").as_deref() {
        Some("debian") => Finding::Good(name),
        _ => Finding::Limited(
            name,
            "made for Debian 12 and 13; other systems need apt, dpkg and the programs below"
                .to_owned(),
        ),
    }
}

fn program(requirement: &requirements::Requirement, met: bool) -> Finding {
    if met {
        return Finding::Good(requirement.purpose.to_owned());
    }
    let command = format!("apt-get install --yes {}", requirement.package);
    if rustix::process::geteuid().is_root() {
        Finding::Limited(
            format!("not installed; {}", requirement.purpose),
            format!("installed when first needed, or now: {command}"),
        )
    } else {
        Finding::Missing(
            format!("not installed; {}", requirement.purpose),
            format!("sudo {command}"),
        )
    }
}

fn static_libc() -> Finding {
    if requirements::missing_packages().contains(&"libc6-dev") {
        Finding::Missing(
            "no static C library, to link the guest's programs".to_owned(),
            "sudo apt-get install --yes libc6-dev".to_owned(),
        )
    } else {
        Finding::Good("links the guest's programs".to_owned())
    }
}

fn sandbox() -> Finding {
    if requirements::find_program("bwrap").is_none() {
        return Finding::Limited(
            "cannot be tested without bwrap".to_owned(),
            "install bubblewrap first".to_owned(),
        );
    }
    let tried = process::output(
        Command::new("bwrap").args([
            "--ro-bind",
            "/",
            "/",
            "--unshare-pid",
            "--proc",
            "/proc",
            "true",
        ]),
        "bwrap",
    );
    match tried {
        Ok(_) => Finding::Good("bubblewrap works".to_owned()),
        Err(error) => Finding::Missing(
            format!("bubblewrap does not work: {error}"),
            "allow user namespaces: sysctl -w kernel.unprivileged_userns_clone=1 \
             user.max_user_namespaces=10000, or run as root"
                .to_owned(),
        ),
    }
}

fn memfd() -> Finding {
    match rustix::fs::memfd_create("vdma-doctor", rustix::fs::MemfdFlags::CLOEXEC) {
        Ok(_) => Finding::Good("backends can share guest memory".to_owned()),
        Err(error) => Finding::Missing(
            format!("memfd_create: {error}"),
            "needs a Linux kernel with CONFIG_MEMFD_CREATE".to_owned(),
        ),
    }
}

fn kvm() -> Finding {
    let slower = "guests run under TCG, about ten times slower".to_owned();
    if let Some(reason) = accel::kvm_unusable() {
        return Finding::Limited(
            format!("{reason}; {slower}"),
            "for speed, enable virtualization and add this user to the group kvm".to_owned(),
        );
    }
    match Cache::open().ok().and_then(|cache| accel::tried(&cache)) {
        Some(true) => Finding::Good("a guest has booted with it".to_owned()),
        Some(false) => Finding::Limited(
            format!("/dev/kvm opens, but no guest boots with it; {slower}"),
            "enable nested virtualization on the hypervisor of this machine".to_owned(),
        ),
        None => Finding::Limited(
            "/dev/kvm opens, but no guest has been booted with it yet".to_owned(),
            "`cargo vm exec -- true` tests it".to_owned(),
        ),
    }
}

fn package_mirror() -> Finding {
    match mirror::find(std::env::var(mirror::MIRROR_VARIABLE).ok().as_deref()) {
        Ok(mirror) => Finding::Good(mirror),
        Err(error) => Finding::Missing("none found".to_owned(), error.to_string()),
    }
}

fn rust() -> Finding {
    let version = cargo::workspace()
        .and_then(|workspace| process::output(cargo::cargo(&workspace).arg("--version"), "cargo"));
    match version {
        Ok(version) => Finding::Good(version.trim().to_owned()),
        Err(error) => Finding::Missing(
            error.to_string(),
            "install Rust with rustup and run `cargo vm` inside the workspace".to_owned(),
        ),
    }
}

fn cache() -> Finding {
    let location = match Cache::open().and_then(|_| Cache::location()) {
        Ok(location) => location,
        Err(error) => {
            return Finding::Missing(
                format!("{error:#}"),
                "set VDMA_CACHE to a writable directory".to_owned(),
            );
        }
    };
    match rustix::fs::statvfs(&location) {
        Ok(space) if space.f_bavail * space.f_frsize >= SPACE => Finding::Good(format!(
            "{} ({} GiB free)",
            location.display(),
            (space.f_bavail * space.f_frsize) >> 30
        )),
        Ok(space) => Finding::Limited(
            format!(
                "{} has {} MiB free",
                location.display(),
                (space.f_bavail * space.f_frsize) >> 20
            ),
            format!(
                "a first run needs {} GiB; VDMA_CACHE sets another directory",
                SPACE >> 30
            ),
        ),
        Err(error) => Finding::Limited(
            format!("{}: {error}", location.display()),
            "the free space is unknown".to_owned(),
        ),
    }
}
