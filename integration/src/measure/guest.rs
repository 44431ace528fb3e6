//! The guest of the measurements, with the device and its peers, and commands in it.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use guest_agent::{Command, CommandEnd, GuestConfig, Stream};

use super::peers::{self, PEERS, Peer, SIZE_MIB};
use crate::{
    testbed::{boot::Testbed, guest::GuestSpec},
    vm::{command_io::CommandIo, running::Vm},
};

/// Packages that the guest needs.
pub(crate) const PACKAGES: &[&str] = &["fio"];

/// The guest's name, and that of its directory.
pub(super) const GUEST: &str = "bench";

/// The device's node in the guest.
pub(super) const DEVICE: &str = "/dev/vdma0";

/// Time for fio to start and end, in addition to the time that it measures.
pub(super) const OVERHEAD: Duration = Duration::from_secs(60);

/// Boots the guest; returns it and the nodes of its peers.
pub(super) fn boot(testbed: &Testbed, verbose: bool) -> Result<(Vm, Vec<(&'static Peer, String)>)> {
    peers::make_files(&testbed.run.path().join(GUEST), SIZE_MIB)?;
    let mut vm = testbed.boot(&GuestSpec {
        name: GUEST.to_owned(),
        config: GuestConfig {
            device_arguments: vec![format!("--memory-size={SIZE_MIB}M")],
            packages: PACKAGES.iter().map(|&name| name.to_owned()).collect(),
            ..GuestConfig::default()
        },
        qemu_arguments: peers::qemu_arguments(SIZE_MIB),
        verbose,
        ..GuestSpec::default()
    })?;
    let nodes = PEERS
        .iter()
        .map(|peer| Ok((peer, find(&mut vm, peer)?)))
        .collect::<Result<Vec<_>>>()?;
    // Memory that was never touched would be allocated during the first job.
    for node in nodes.iter().map(|(_, node)| node.as_str()).chain([DEVICE]) {
        let output = format!("of={node}");
        let size = format!("count={SIZE_MIB}");
        sh(
            &mut vm,
            &[
                "dd",
                "if=/dev/urandom",
                &output,
                "bs=1M",
                &size,
                "conv=notrunc",
            ],
            OVERHEAD,
        )?;
    }
    Ok((vm, nodes))
}

/// The node of a peer's disk.
fn find(vm: &mut Vm, peer: &Peer) -> Result<String> {
    let script = format!("grep -l '^{}' /sys/block/*/serial", peer.serial);
    let path = sh(vm, &["sh", "-c", &script], OVERHEAD)?;
    let name = path.split('/').nth(3).context("no name")?;
    Ok(format!("/dev/{name}"))
}

/// Runs a command in the guest, which has to succeed, and returns its output.
pub(super) fn sh(vm: &mut Vm, arguments: &[&str], limit: Duration) -> Result<String> {
    let command = Command {
        arguments: arguments.iter().map(|&word| word.to_owned()).collect(),
        ..Command::default()
    };
    let mut output = Output(Vec::new());
    let end = vm.run(command, Some(limit), &mut output)?;
    let text = String::from_utf8_lossy(&output.0).into_owned();
    match end {
        CommandEnd::Exited(0) => Ok(text),
        end => bail!("{} ended with {end:?}: {text}", arguments.join(" ")),
    }
}

/// The complete output of a command: the list of kernel symbols is long.
struct Output(Vec<u8>);

impl CommandIo for Output {
    fn output(&mut self, _stream: Stream, data: &[u8]) -> Result<()> {
        self.0.extend_from_slice(data);
        Ok(())
    }
}
