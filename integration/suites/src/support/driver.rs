//! Binding the driver to its device, and loading it.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use super::{NODE, wait};

const SYSFS: &str = "/sys/bus/virtio/drivers/vdma";

/// The devices that the driver is bound to, such as `virtio2`.
pub(crate) fn bound() -> Result<Vec<String>> {
    Ok(fs::read_dir(SYSFS)
        .with_context(|| format!("{SYSFS}: is the driver loaded?"))?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("virtio"))
        .collect())
}

/// A device that the driver has been taken off; it is given back when this is dropped.
pub(crate) struct Unbound(Option<String>);

impl Unbound {
    /// Takes the driver off the only device.
    pub(crate) fn new() -> Result<Self> {
        let mut names = bound()?;
        let name = names.pop().context("the driver is bound to no device")?;
        fs::write(format!("{SYSFS}/unbind"), &name).context("cannot unbind the driver")?;
        Ok(Self(Some(name)))
    }

    /// Binds the driver again, and waits for the node.
    pub(crate) fn bind(mut self) -> Result<()> {
        match self.0.take() {
            Some(name) => bind(&name),
            None => Ok(()),
        }
    }
}

impl Drop for Unbound {
    fn drop(&mut self) {
        if let Some(name) = self.0.take()
            && let Err(error) = bind(&name)
        {
            eprintln!("after the test: {error:#}");
        }
    }
}

fn bind(name: &str) -> Result<()> {
    fs::write(format!("{SYSFS}/bind"), name).context("cannot bind the driver")?;
    wait_for_node()
}

fn wait_for_node() -> Result<()> {
    wait::until("the device node appears", || Ok(Path::new(NODE).exists()))
}

/// Whether the module is loaded.
pub(crate) fn is_loaded() -> bool {
    Path::new("/sys/module/vdma").exists()
}

/// Loads the module and waits for the node.
pub(crate) fn load() -> Result<()> {
    load_with(&[])
}

fn load_with(parameters: &[&str]) -> Result<()> {
    tool(&[&["modprobe", "vdma"], parameters].concat())?;
    wait_for_node()
}

/// The driver loaded with parameters of its own; dropping this loads it as it was.
pub(crate) struct Reloaded(());

impl Reloaded {
    /// Loads the driver anew with these parameters.
    pub(crate) fn with(parameters: &[&str]) -> Result<Self> {
        unload()?;
        // From here on there is something to be restored.
        let reloaded = Self(());
        load_with(parameters)?;
        Ok(reloaded)
    }
}

impl Drop for Reloaded {
    fn drop(&mut self) {
        let unloaded = if is_loaded() { unload() } else { Ok(()) };
        if let Err(error) = unloaded.and_then(|()| load()) {
            eprintln!("after the test: {error:#}");
        }
    }
}

/// Unloads the module; fails as `rmmod` does when it is in use.
pub(crate) fn unload() -> Result<()> {
    tool(&["rmmod", "vdma"]).map(|_| ())
}

/// Runs a program that has to succeed; gives its output.
pub(crate) fn tool(arguments: &[&str]) -> Result<String> {
    let (program, rest) = arguments.split_first().context("no program")?;
    let output = Command::new(program)
        .args(rest)
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "{} failed ({}): {}{}",
            arguments.join(" "),
            output.status,
            text,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(text)
}
