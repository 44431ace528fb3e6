//! QEMU's command line.

use std::{os::fd::OwnedFd, path::PathBuf, process::Command};

use anyhow::{Context, Result};
use command_fds::{CommandFdExt as _, FdMapping};
use guest_agent::{PORT_NAME, ROOT_SERIAL};
use serde_json::{Value, json};

use crate::host::{accel::Accel, tools::Tools};

/// Mount point of the run's directory in QEMU's sandbox.
pub(crate) const RUN: &str = "/mnt/run";
const KERNEL: &str = "/mnt/vmlinuz";
const ROOT: &str = "/mnt/root.erofs";
const PLUGIN: &str = "/mnt/plugin.so";

/// File in the run directory in which the plugin counts instructions.
pub(crate) const COUNTS: &str = "instructions";

/// Descriptors that QEMU inherits.
const AGENT_FD: i32 = 10;
const QMP_FD: i32 = 11;

/// Size of the device's configuration space, in bytes.
const CONFIG_SIZE: u32 = 64;

/// Virtio device id of the DMA device.
const VIRTIO_ID: u32 = 37;

/// One device of the guest.
#[derive(Clone, Debug)]
pub(crate) struct DeviceSpec {
    /// Name of the backend's socket in the run directory.
    pub(crate) socket: String,
    /// Number of request queues, as configured in the backend.
    pub(crate) queues: u16,
    /// Size of each queue, as configured in the backend.
    pub(crate) queue_size: u16,
    /// Offer `VIRTIO_F_ACCESS_PLATFORM`, so that the driver uses the DMA API.
    pub(crate) dma_api: bool,
}

/// The machine that QEMU emulates, and what QEMU needs from the host.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) accel: Accel,
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: PathBuf,
    pub(crate) root_image: PathBuf,
    /// Directory with the backends' sockets and the initial file system, `initramfs.cpio`.
    pub(crate) run_directory: PathBuf,
    pub(crate) kernel_parameters: String,
    pub(crate) devices: Vec<DeviceSpec>,
    /// The plugin that counts instructions, with TCG only.
    pub(crate) counting_plugin: Option<PathBuf>,
    pub(crate) extra: Vec<String>,
}

impl Machine {
    /// QEMU's arguments.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut arguments: Vec<String> = Vec::new();
        let mut add =
            |words: &[&str]| arguments.extend(words.iter().map(|word| (*word).to_owned()));
        add(&[
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ]);
        add(&["-machine", "q35,memory-backend=memory"]);
        // Five-level page tables are off: while `identify_cpu` has cleared the boot CPU's
        // capabilities, LA57 among them, KASAN (`addr_has_metadata`) computes the lowest valid
        // address wrongly and reports any interrupt at that time as a wild access.
        match self.accel {
            Accel::Kvm => add(&["-accel", "kvm", "-cpu", "host,la57=off"]),
            Accel::Tcg => add(&["-accel", "tcg,thread=multi", "-cpu", "max,la57=off"]),
        }
        add(&["-smp", &self.cpus.to_string()]);
        let memory = format!("{}M", self.memory_mib);
        add(&["-m", &memory]);
        // A backend can map the guest's memory only if it is a shared file.
        add(&[
            "-object",
            &format!("memory-backend-memfd,id=memory,size={memory},share=on"),
        ]);
        add(&[
            "-chardev",
            "stdio,id=console,signal=off",
            "-serial",
            "chardev:console",
        ]);
        add(&["-chardev", &format!("socket,id=qmp,fd={QMP_FD}")]);
        add(&["-object", "monitor-qmp,id=monitor,chardev=qmp"]);
        add(&["-device", "virtio-serial-pci"]);
        add(&["-chardev", &format!("socket,id=agent,fd={AGENT_FD}")]);
        add(&[
            "-device",
            &format!("virtserialport,chardev=agent,name={PORT_NAME}"),
        ]);
        add(&[
            "-blockdev",
            &format!("driver=file,node-name=root,filename={ROOT},read-only=on"),
        ]);
        add(&[
            "-device",
            &format!("virtio-blk-pci,drive=root,serial={ROOT_SERIAL}"),
        ]);
        add(&[
            "-kernel",
            KERNEL,
            "-initrd",
            &format!("{RUN}/initramfs.cpio"),
        ]);
        add(&["-append", &self.kernel_parameters]);
        for (number, spec) in (0_u32..).zip(&self.devices) {
            // A device with its own root port can be unplugged and plugged in again.
            add(&[
                "-device",
                &format!("pcie-root-port,id=port{number},chassis={}", number + 1),
                "-chardev",
                &format!(
                    "socket,id={},path={RUN}/{}",
                    chardev_id(number),
                    spec.socket
                ),
                "-device",
                &device(number, spec).to_string(),
            ]);
        }
        if self.counting_plugin.is_some() {
            let name = instruction_counter::FILE_ARGUMENT;
            arguments.push("-plugin".to_owned());
            arguments.push(format!("{PLUGIN},{name}={RUN}/{COUNTS}"));
        }
        arguments.extend(self.extra.iter().cloned());
        arguments
    }

    /// Returns the command that starts QEMU in the sandbox; `agent` and `qmp` are QEMU's ends of
    /// the connections.
    pub(crate) fn command(&self, tools: &Tools, agent: OwnedFd, qmp: OwnedFd) -> Result<Command> {
        let mut sandbox = tools
            .sandbox()
            .read(&self.kernel, KERNEL)
            .read(&self.root_image, ROOT)
            .write(&self.run_directory, RUN);
        if let Some(plugin) = &self.counting_plugin {
            sandbox = sandbox.read(plugin, PLUGIN);
        }
        let mut command = sandbox.command("qemu-system-x86_64");
        command.args(self.arguments());
        command
            .fd_mappings(vec![
                FdMapping {
                    parent_fd: agent,
                    child_fd: AGENT_FD,
                },
                FdMapping {
                    parent_fd: qmp,
                    child_fd: QMP_FD,
                },
            ])
            .context("cannot pass descriptors to QEMU")?;
        Ok(command)
    }
}

/// QEMU's name for device `number`.
pub(crate) fn device_id(number: u32) -> String {
    format!("vdma{number}")
}

/// QEMU's name for the connection to the backend of device `number`.
pub(crate) fn chardev_id(number: u32) -> String {
    format!("backend{number}")
}

/// Arguments of `device_add` for device `number`; `-device` takes them as well.
pub(crate) fn device(number: u32, device: &DeviceSpec) -> Value {
    json!({
        "driver": "vhost-user-test-device-pci",
        "id": device_id(number),
        "bus": format!("port{number}"),
        "chardev": chardev_id(number),
        "virtio-id": VIRTIO_ID,
        "num_vqs": device.queues,
        "vq_size": device.queue_size,
        "config_size": CONFIG_SIZE,
        "iommu_platform": device.dma_api,
    })
}

/// Arguments of `chardev-add` for the connection to the backend of device `number`.
pub(crate) fn chardev(number: u32, device: &DeviceSpec) -> Value {
    let path = format!("{RUN}/{}", device.socket);
    json!({
        "id": chardev_id(number),
        "backend": {
            "type": "socket",
            "data": { "addr": { "type": "unix", "data": { "path": path } }, "server": false }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_arguments_come_last_and_every_device_has_its_own_port() {
        let device = |number: u32| DeviceSpec {
            socket: format!("backend-{number}.sock"),
            queues: 2,
            queue_size: 128,
            dma_api: number == 1,
        };
        let machine = Machine {
            accel: Accel::Tcg,
            cpus: 2,
            memory_mib: 512,
            kernel: PathBuf::from("/k"),
            root_image: PathBuf::from("/r"),
            run_directory: PathBuf::from("/d"),
            kernel_parameters: "quiet".to_owned(),
            devices: vec![device(0), device(1)],
            counting_plugin: Some(PathBuf::from("/p.so")),
            extra: vec!["-s".to_owned()],
        };
        let arguments = machine.arguments();
        assert_eq!(arguments.last().map(String::as_str), Some("-s"));
        let line = arguments.join(" ");
        assert!(line.contains("\"bus\":\"port1\"") && line.contains("\"num_vqs\":2"));
        assert!(line.contains("\"iommu_platform\":false"));
        assert!(line.contains("\"iommu_platform\":true"));
        assert!(line.contains("path=/mnt/run/backend-1.sock"));
        assert!(line.contains("size=512M,share=on"));
        assert!(line.contains("-plugin /mnt/plugin.so,counts=/mnt/run/instructions -s"));
    }
}
