//! Binding the driver to its device, and loading it.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use super::{NODE, program, wait};

const SYSFS: &str = "/sys/bus/virtio/drivers/vdma";

/// Names of the devices that the driver is bound to, such as `virtio2`.
pub(crate) fn bound() -> Result<Vec<String>> {
    Ok(fs::read_dir(SYSFS)
        .with_context(|| format!("{SYSFS}: is the driver loaded?"))?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("virtio"))
        .collect())
}

/// A device that the driver has been unbound from; dropping this binds it again.
pub(crate) struct Unbound(Option<String>);

impl Unbound {
    /// Unbinds the driver from a device, the only one in most guests.
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
    program::run(&[&["modprobe", "vdma"], parameters].concat())?;
    wait_for_node()
}

/// The driver loaded with parameters of its own; dropping this loads it without them.
pub(crate) struct Reloaded(());

impl Reloaded {
    /// Loads the driver again, with these parameters.
    pub(crate) fn with(parameters: &[&str]) -> Result<Self> {
        unload()?;
        // From here on, failure or not, the driver has to be loaded without them again.
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
    program::run(&["rmmod", "vdma"]).map(|_| ())
}
