use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::Error;

/// A vdma device that the system knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The device node, `/dev/vdmaN`.
    pub path: PathBuf,
    /// The virtio device, such as `virtio3`.
    pub virtio: String,
    /// The PCI function, such as `0000:01:00.0`, if the device is on PCI.
    pub pci: Option<String>,
}

/// The vdma devices of this system, by number.
///
/// # Errors
///
/// [`Error::List`] when sysfs cannot be read.
pub fn nodes() -> Result<Vec<Node>, Error> {
    nodes_below(Path::new("/sys/class/misc")).map_err(Error::List)
}

fn nodes_below(class: &Path) -> io::Result<Vec<Node>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(class)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(number) = name
            .to_str()
            .and_then(|name| name.strip_prefix("vdma"))
            .and_then(|number| number.parse::<u32>().ok())
        else {
            continue;
        };
        // The device may be removed while the directory is read.
        let Ok(virtio) = fs::canonicalize(entry.path().join("device")) else {
            continue;
        };
        let name_of = |path: &Path| {
            path.file_name()
                .map(|name| name.to_string_lossy().into_owned())
        };
        let pci = virtio
            .parent()
            .and_then(name_of)
            .filter(|name| name.matches(':').count() == 2);
        let node = Node {
            path: Path::new("/dev").join(&name),
            virtio: name_of(&virtio).unwrap_or_default(),
            pci,
        };
        found.push((number, node));
    }
    found.sort_by_key(|(number, _)| *number);
    Ok(found.into_iter().map(|(_, node)| node).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn finds_devices_in_the_order_of_their_numbers() {
        let sys = tempfile::tempdir().unwrap();
        let class = sys.path().join("class/misc");
        fs::create_dir_all(&class).unwrap();
        for (node, device) in [
            ("vdma10", "devices/pci0000:00/0000:01:00.0/virtio7"),
            ("vdma2", "devices/platform/mmio/virtio1"),
            ("vdmax", "devices/x"),
            ("rtc", "devices/rtc"),
        ] {
            let device = sys.path().join(device);
            fs::create_dir_all(&device).unwrap();
            fs::create_dir_all(class.join(node)).unwrap();
            symlink(&device, class.join(node).join("device")).unwrap();
        }
        let nodes = nodes_below(&class).unwrap();
        let expected = [
            Node {
                path: "/dev/vdma2".into(),
                virtio: "virtio1".into(),
                pci: None,
            },
            Node {
                path: "/dev/vdma10".into(),
                virtio: "virtio7".into(),
                pci: Some("0000:01:00.0".into()),
            },
        ];
        assert_eq!(nodes, expected);
    }
}
