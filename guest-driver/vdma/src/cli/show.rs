use std::path::Path;

use serde_json::{Value, json};
use vdma::{Device, DeviceInfo, Node, Operation, Statistics};

use super::output::{JSON_VERSION, Output, print_json, size};

pub(super) fn list(output: Output) -> anyhow::Result<()> {
    let nodes = vdma::nodes()?;
    let devices: Vec<(Node, Result<Device, vdma::Error>)> = nodes
        .into_iter()
        .map(|node| {
            let device = Device::open(&node.path);
            (node, device)
        })
        .collect();
    match output {
        Output::Json => print_json(&json!({
            "version": JSON_VERSION,
            "devices": devices.iter().map(|(node, device)| json!({
                "node": node.path,
                "virtio": node.virtio,
                "pci": node.pci,
                "memory_size": device.as_ref().ok().map(|device| device.info().memory_size),
                "error": device.as_ref().err().map(ToString::to_string),
            })).collect::<Vec<_>>(),
        }))?,
        Output::Text if devices.is_empty() => {
            eprintln!("no vdma device; is the module vdma loaded, and a device plugged?");
        }
        Output::Text => {
            print_line!(
                "{:<12} {:<14} {:<9} {:>10}  {:<6} BAR",
                "Node",
                "PCI",
                "Virtio",
                "Memory",
                "Queues"
            )?;
            for (node, device) in &devices {
                let place = format!(
                    "{:<12} {:<14} {:<9}",
                    node.path.display(),
                    node.pci.as_deref().unwrap_or("-"),
                    node.virtio
                );
                match device {
                    Ok(device) => {
                        let info = device.info();
                        print_line!(
                            "{place} {:>10}  {:<6} {}",
                            size(info.memory_size),
                            format!("{}x{}", info.num_queues, info.queue_size),
                            bar(info)
                        )?;
                    }
                    Err(error) => print_line!("{place} {error}")?,
                }
            }
        }
    }
    Ok(())
}

pub(super) fn info(path: &Path, output: Output) -> anyhow::Result<()> {
    let device = Device::open(path)?;
    let info = device.info();
    let statistics = device.device_statistics()?;
    let operations: Vec<&str> = Operation::ALL
        .iter()
        .filter(|operation| info.operations & operation.bit() != 0)
        .map(|operation| operation.name())
        .collect();
    match output {
        Output::Json => print_json(&json!({
            "version": JSON_VERSION,
            "node": path,
            "memory_size": info.memory_size,
            "bar_address": info.bar_address,
            "bar_size": info.bar_size,
            "num_queues": info.num_queues,
            "queue_size": info.queue_size,
            "max_segments": info.max_segments,
            "max_transfer": info.max_transfer,
            "dma_bits": info.dma_bits,
            "features": info.features,
            "state": info.state,
            "operations": operations,
            "statistics": statistics_json(&statistics),
        }))?,
        Output::Text => {
            let line = |name: &str, value: String| print_line!("{name:<20}: {value}");
            line("node", path.display().to_string())?;
            line("device memory", size(info.memory_size))?;
            line("BAR", bar(info))?;
            line(
                "queues",
                format!("{} of {} descriptors", info.num_queues, info.queue_size),
            )?;
            line(
                "largest request",
                format!(
                    "{} in {} segments",
                    size(info.max_transfer.into()),
                    info.max_segments
                ),
            )?;
            line("DMA addresses", format!("{} bits", info.dma_bits))?;
            line("virtio features", format!("{:#x}", info.features))?;
            line("operations", operations.join(" "))?;
            for (name, value) in statistics_fields(&statistics) {
                line(&name.replace('_', " "), value.to_string())?;
            }
        }
    }
    Ok(())
}

fn bar(info: &DeviceInfo) -> String {
    match info.bar_size {
        0 => "none".into(),
        bar_size => format!("{} at {:#x}", size(bar_size), info.bar_address),
    }
}

fn statistics_fields(statistics: &Statistics) -> impl Iterator<Item = (&'static str, u64)> {
    Statistics::NAMES.into_iter().zip(statistics.values())
}

fn statistics_json(statistics: &Statistics) -> Value {
    statistics_fields(statistics)
        .map(|(name, value)| (name.to_owned(), Value::from(value)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}
