//! Process 1: from the initial file system to a guest that accepts commands.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use guest_agent::{INIT_CONFIG, InitConfig, LAYER, ROOT_SERIAL};
use rustix::{
    io::Errno,
    mount::MountFlags,
    process::{Pid, WaitOptions},
    system::RebootCommand,
};

use crate::loopback;

/// Limit on the time until a device appears.
const DEVICE_DEADLINE: Duration = Duration::from_secs(20);

/// Interval between checks for a device.
const DEVICE_POLL: Duration = Duration::from_millis(5);

/// Boots the guest and waits until the agent ends; returns why the guest cannot continue.
pub(crate) fn run() -> String {
    match bring_up() {
        Ok(agent) => collect_orphans(agent),
        Err(reason) => reason,
    }
}

/// Powers the machine off.
pub(crate) fn power_off() -> ExitCode {
    let error = rustix::system::reboot(RebootCommand::PowerOff);
    eprintln!("vdma-agent: cannot power off: {error:?}");
    ExitCode::FAILURE
}

fn bring_up() -> Result<Pid, String> {
    mount(
        "devtmpfs",
        "/dev",
        "devtmpfs",
        MountFlags::NOSUID,
        "mode=0755",
    )?;
    mount("proc", "/proc", "proc", MountFlags::empty(), "")?;
    mount("sysfs", "/sys", "sysfs", MountFlags::empty(), "")?;
    let encoded = fs::read(INIT_CONFIG).map_err(|error| format!("{INIT_CONFIG}: {error}"))?;
    let config: InitConfig =
        postcard::from_bytes(&encoded).map_err(|error| format!("{INIT_CONFIG}: {error}"))?;
    for module in &config.modules {
        load_module(module)?;
    }
    enter_root()?;
    rustix::system::sethostname(config.hostname.as_bytes())
        .map_err(|error| format!("cannot set the host name: {error}"))?;
    // Programs may use the loopback interface even without a network.
    loopback::up().map_err(|error| format!("cannot bring the loopback interface up: {error}"))?;
    if let Some(driver) = &config.driver {
        load_module(driver)?;
        for number in 0..config.devices {
            let node = PathBuf::from(format!("/dev/vdma{number}"));
            wait_for(&node.display().to_string(), || node.exists().then_some(()))
                .map_err(|error| format!("{error}, though the driver is loaded"))?;
        }
    }
    let agent = std::process::Command::new("/proc/self/exe")
        .arg("agent")
        .spawn()
        .map_err(|error| format!("cannot start the agent: {error}"))?;
    Ok(Pid::from_child(&agent))
}

/// Reaps children, orphans included, until the agent ends.
fn collect_orphans(agent: Pid) -> String {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == agent => {
                return format!("the agent ended ({status:?})");
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return format!("cannot wait for processes: {error}"),
        }
    }
}

/// Makes an overlay of the disk, the run's files and a writable layer the root file system.
fn enter_root() -> Result<(), String> {
    let disk = wait_for("the root disk", root_disk)?;
    for directory in ["/lower", "/upper", "/root"] {
        fs::create_dir_all(directory).map_err(|error| format!("mkdir {directory}: {error}"))?;
    }
    mount(&disk, "/lower", "erofs", MountFlags::RDONLY, "")?;
    mount("tmpfs", "/upper", "tmpfs", MountFlags::empty(), "size=80%")?;
    for directory in ["/upper/data", "/upper/work"] {
        fs::create_dir_all(directory).map_err(|error| format!("mkdir {directory}: {error}"))?;
    }
    let layers = format!("lowerdir={LAYER}:/lower,upperdir=/upper/data,workdir=/upper/work");
    mount("overlay", "/root", "overlay", MountFlags::empty(), &layers)?;
    for directory in ["dev", "proc", "sys"] {
        let target = format!("/root/{directory}");
        fs::create_dir_all(&target).map_err(|error| format!("mkdir {target}: {error}"))?;
        rustix::mount::mount_move(format!("/{directory}"), &target)
            .map_err(|error| format!("cannot move /{directory} to {target}: {error}"))?;
    }
    std::env::set_current_dir("/root").map_err(|error| format!("chdir /root: {error}"))?;
    rustix::mount::mount_move(".", "/")
        .map_err(|error| format!("cannot move the root file system to /: {error}"))?;
    rustix::process::chroot(".").map_err(|error| format!("chroot: {error}"))?;
    std::env::set_current_dir("/").map_err(|error| format!("chdir /: {error}"))?;
    for (kind, target, options) in [
        ("tmpfs", "/tmp", "mode=1777"),
        ("tmpfs", "/run", "mode=0755"),
        ("tmpfs", "/dev/shm", "mode=1777"),
        ("devpts", "/dev/pts", "ptmxmode=0666,mode=0620,gid=5"),
        ("debugfs", "/sys/kernel/debug", ""),
        ("tracefs", "/sys/kernel/tracing", ""),
    ] {
        // A small kernel may have no debugfs and tracefs.
        if target.starts_with("/sys") && !Path::new(target).exists() {
            continue;
        }
        fs::create_dir_all(target).map_err(|error| format!("mkdir {target}: {error}"))?;
        mount(kind, target, kind, MountFlags::empty(), options)?;
    }
    Ok(())
}

/// The disk whose serial number is [`ROOT_SERIAL`].
fn root_disk() -> Option<String> {
    for entry in fs::read_dir("/sys/block").ok()?.flatten() {
        let serial = fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
        if serial.trim_end_matches('\0').trim() == ROOT_SERIAL {
            let node = format!("/dev/{}", entry.file_name().to_string_lossy());
            return Path::new(&node).exists().then_some(node);
        }
    }
    None
}

fn wait_for<T>(what: &str, mut find: impl FnMut() -> Option<T>) -> Result<T, String> {
    let deadline = Instant::now() + DEVICE_DEADLINE;
    loop {
        if let Some(found) = find() {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            let seconds = DEVICE_DEADLINE.as_secs();
            return Err(format!("{what} did not appear within {seconds} s"));
        }
        std::thread::sleep(DEVICE_POLL);
    }
}

fn mount(
    source: &str,
    target: &str,
    kind: &str,
    flags: MountFlags,
    options: &str,
) -> Result<(), String> {
    let options = std::ffi::CString::new(options).map_err(|error| error.to_string())?;
    rustix::mount::mount(source, target, kind, flags, options.as_c_str())
        .map_err(|error| format!("cannot mount {kind} on {target}: {error}"))
}

fn load_module(path: &str) -> Result<(), String> {
    let file = File::open(path).map_err(|error| format!("kernel module {path}: {error}"))?;
    rustix::system::finit_module(&file, c"", 0)
        .map_err(|error| format!("cannot load the kernel module {path}: {error}"))
}
