//! Loading of the module by name and by the alias of its device, and the owner of the node: what
//! kmod and udev do.

use std::{
    fs::{self, OpenOptions},
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;

use crate::support::{NODE, driver, open, program};

const RULES: &str = include_str!("../../../../guest-driver/packaging/60-vdma.rules");
const RULES_FILE: &str = "/run/udev/rules.d/60-vdma.rules";

/// Id of a group that the image does not have.
const GROUP: u32 = 990;
/// Id of a user, and of a group, that the image does not have.
const USER: u32 = 991;

#[guest_test]
fn modinfo_describes_the_module() -> Result<()> {
    let field = |name: &str| program::run(&["modinfo", "--field", name, "vdma"]);
    let license = field("license")?;
    ensure!(license.trim() == "GPL v2", "license {license}");
    let alias = field("alias")?;
    ensure!(alias.contains("virtio:d00000025v*"), "alias {alias}");
    ensure!(
        alias.lines().any(|line| line == "virtio_dma"),
        "alias {alias}"
    );
    for name in ["description", "vermagic"] {
        ensure!(!field(name)?.trim().is_empty(), "no {name}");
    }
    Ok(())
}

#[guest_test]
fn modprobe_loads_and_unloads() -> Result<()> {
    program::run(&["modprobe", "--remove", "vdma"])?;
    ensure!(!driver::is_loaded(), "modprobe --remove left it loaded");
    ensure!(!Path::new(NODE).exists(), "{NODE} is still there");
    driver::load()?;
    open()?;
    // The module's former name still loads it.
    program::run(&["modprobe", "--remove", "virtio_dma"])?;
    ensure!(
        !driver::is_loaded(),
        "modprobe --remove virtio_dma left it loaded"
    );
    program::run(&["modprobe", "virtio_dma"])?;
    ensure!(driver::is_loaded(), "modprobe virtio_dma did not load it");
    open()?;
    Ok(())
}

#[guest_test]
fn the_modalias_loads_the_module() -> Result<()> {
    let alias = modalias()?;
    driver::unload()?;
    let result = program::run(&["modprobe", "--resolve-alias", &alias])
        .and_then(|names| program::run(&["modprobe", &alias]).map(|_| names));
    let loaded = driver::is_loaded();
    if !loaded {
        driver::load()?;
    }
    let names = result?;
    ensure!(names.trim() == "vdma", "{alias} means {names}");
    ensure!(loaded, "modprobe {alias} did not load it");
    Ok(())
}

/// The alias by which the kernel requests a driver for the device.
fn modalias() -> Result<String> {
    let bound = driver::bound()?;
    let name = bound.first().context("the driver is bound to no device")?;
    let path = format!("/sys/bus/virtio/devices/{name}/modalias");
    let alias = fs::read_to_string(&path).context(path)?;
    Ok(alias.trim().to_owned())
}

#[guest_test(packages = &["udev"])]
fn udev_accepts_the_rules() -> Result<()> {
    install_rules()?;
    program::run(&["udevadm", "verify", "--resolve-names=early", RULES_FILE])?;
    fs::write("/tmp/60-wrong.rules", RULES.replace("MODE=", "MODUS="))?;
    ensure!(
        program::run(&["udevadm", "verify", "/tmp/60-wrong.rules"]).is_err(),
        "udevadm verify accepts anything"
    );
    Ok(())
}

/// Installs the rules, and adds the group that they name.
fn install_rules() -> Result<()> {
    fs::create_dir_all("/run/udev/rules.d")?;
    fs::write(RULES_FILE, RULES).context(RULES_FILE)?;
    let groups = fs::read_to_string("/etc/group").context("/etc/group")?;
    if !groups.lines().any(|line| line.starts_with("vdma:")) {
        fs::write("/etc/group", format!("{groups}vdma:x:{GROUP}:\n")).context("/etc/group")?;
    }
    Ok(())
}

/// A running udev daemon; dropping this ends it.
struct Udev(());

impl Udev {
    fn start() -> Result<Self> {
        program::run(&["/usr/lib/systemd/systemd-udevd", "--daemon"])?;
        Ok(Self(()))
    }
}

impl Drop for Udev {
    fn drop(&mut self) {
        if let Err(error) = program::run(&["udevadm", "control", "--exit"]) {
            eprintln!("after the test: {error:#}");
        }
    }
}

#[guest_test(packages = &["udev"])]
fn udev_loads_the_module_and_sets_the_group_of_the_node() -> Result<()> {
    install_rules()?;
    driver::unload()?;
    let udev = Udev::start()?;
    let coldplug = [
        "udevadm",
        "trigger",
        "--action=add",
        "--subsystem-match=virtio",
    ];
    let result = program::run(&coldplug).and_then(|_| program::run(&["udevadm", "settle"]));
    let loaded = driver::is_loaded();
    if !loaded {
        driver::load()?;
    }
    result?;
    ensure!(loaded, "udev did not load the module for its device");
    // Loading the module has caused events for the node itself.
    program::run(&["udevadm", "settle"])?;
    let node = fs::metadata(NODE).context(NODE)?;
    ensure!(
        node.mode() & 0o7777 == 0o660 && node.uid() == 0 && node.gid() == GROUP,
        "{NODE} has mode {:o}, owner {}, group {}",
        node.mode(),
        node.uid(),
        node.gid()
    );
    drop(udev);
    let as_user = |group: u32| {
        Command::new("head")
            .args(["--bytes=1", NODE])
            .uid(USER)
            .gid(group)
            .output()
            .context("cannot run head")
    };
    let member = as_user(GROUP)?;
    ensure!(
        member.status.success() && member.stdout.len() == 1,
        "{member:?}"
    );
    let other = as_user(USER)?;
    ensure!(
        !other.status.success(),
        "a user outside the group can read {NODE}"
    );
    let text = String::from_utf8_lossy(&other.stderr);
    ensure!(text.contains("Permission denied"), "{text}");
    OpenOptions::new().write(true).open(NODE).context(NODE)?;
    Ok(())
}
