//! The initial file system of a run: the agent, the modules that it loads, the run's files.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufWriter, Write},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use cpio::newc;
use guest_agent::{INIT_CONFIG, InitConfig, LAYER};

const DIRECTORY: u32 = 0o040_755;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// Links at the top of the guest's file system, which the overlay must not hide.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// An archive under construction.
pub(crate) struct Initramfs<W: Write> {
    to: Option<W>,
    inode: u32,
    directories: BTreeSet<PathBuf>,
}

impl Initramfs<BufWriter<File>> {
    /// Begins the archive `path` with the agent and its configuration.
    pub(crate) fn create(path: &Path, agent: &Path, config: &InitConfig) -> Result<Self> {
        let file =
            File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        Self::begin(BufWriter::new(file), agent, config)
    }
}

impl<W: Write> Initramfs<W> {
    fn begin(to: W, agent: &Path, config: &InitConfig) -> Result<Self> {
        let mut archive = Self {
            to: Some(to),
            inode: 1,
            directories: BTreeSet::new(),
        };
        for directory in ["dev", "proc", "sys", LAYER.trim_start_matches('/')] {
            archive.directory(Path::new(directory))?;
        }
        // The kernel opens it for process 1 before devtmpfs is mounted.
        archive.entry("dev/console", CHARACTER_DEVICE, Some((5, 1)), &[])?;
        archive.file(agent, Path::new("init"))?;
        let encoded =
            postcard::to_stdvec(config).context("cannot encode the guest's configuration")?;
        archive.entry(
            INIT_CONFIG.trim_start_matches('/'),
            REGULAR | 0o644,
            None,
            &encoded,
        )?;
        Ok(archive)
    }

    /// Adds the host's `from` as `target`, a path in the initial file system.
    pub(crate) fn file(&mut self, from: &Path, target: &Path) -> Result<()> {
        let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        let mode = fs::metadata(from)
            .with_context(|| format!("cannot read {}", from.display()))?
            .permissions()
            .mode();
        self.parents(target)?;
        self.entry(&name(target)?, REGULAR | (mode & 0o7777), None, &content)
    }

    /// Adds the host's file or directory `from` as `target`, a path in the guest.
    pub(crate) fn layer(&mut self, from: &Path, target: &Path) -> Result<()> {
        let target = below_layer(target)?;
        self.tree(from, &target)
    }

    /// Completes the archive.
    pub(crate) fn finish(mut self) -> Result<W> {
        let to = self.to.take().context("the archive is complete already")?;
        let mut to = newc::trailer(to).context("cannot complete the initial file system")?;
        to.flush().context("cannot write the initial file system")?;
        Ok(to)
    }

    fn tree(&mut self, from: &Path, target: &Path) -> Result<()> {
        let metadata =
            fs::metadata(from).with_context(|| format!("cannot read {}", from.display()))?;
        if !metadata.is_dir() {
            if !metadata.is_file() {
                bail!(
                    "cannot copy {}: it is neither a file nor a directory",
                    from.display()
                );
            }
            return self.file(from, target);
        }
        self.parents(target)?;
        self.directory(target)?;
        let mut entries: Vec<_> = fs::read_dir(from)
            .with_context(|| format!("cannot read {}", from.display()))?
            .collect::<Result<_, _>>()
            .with_context(|| format!("cannot read {}", from.display()))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let inside = target.join(entry.file_name());
            let kind = entry
                .file_type()
                .with_context(|| format!("cannot read {}", path.display()))?;
            if kind.is_symlink() {
                let points_to = fs::read_link(&path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                let points_to = points_to.to_string_lossy().into_owned();
                self.entry(&name(&inside)?, SYMLINK, None, points_to.as_bytes())?;
            } else if kind.is_socket() || kind.is_fifo() {
                bail!(
                    "cannot copy {}: it is neither a file nor a directory",
                    path.display()
                );
            } else {
                self.tree(&path, &inside)?;
            }
        }
        Ok(())
    }

    fn parents(&mut self, target: &Path) -> Result<()> {
        let mut parents: Vec<&Path> = target.ancestors().skip(1).collect();
        parents.reverse();
        for parent in parents {
            if parent != Path::new("") {
                self.directory(parent)?;
            }
        }
        Ok(())
    }

    fn directory(&mut self, path: &Path) -> Result<()> {
        if !self.directories.insert(path.to_owned()) {
            return Ok(());
        }
        // The mode of a merged directory is that of the upper one: root's home stays private.
        let private = path == Path::new(LAYER.trim_start_matches('/')).join("root");
        let mode = if private {
            DIRECTORY & !0o055
        } else {
            DIRECTORY
        };
        self.entry(&name(path)?, mode, None, &[])
    }

    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        device: Option<(u32, u32)>,
        content: &[u8],
    ) -> Result<()> {
        let size = u32::try_from(content.len())
            .with_context(|| format!("{name} is too large to be copied to the guest (4 GiB)"))?;
        let mut builder = newc::Builder::new(name)
            .ino(self.inode)
            .nlink(1)
            .mode(mode)
            .uid(0)
            .gid(0);
        if let Some((major, minor)) = device {
            builder = builder.rdev_major(major).rdev_minor(minor);
        }
        self.inode += 1;
        let to = self.to.take().context("the archive is complete already")?;
        let mut writer = builder.write(to, size);
        writer
            .write_all(content)
            .with_context(|| format!("cannot add {name} to the initial file system"))?;
        let to = writer
            .finish()
            .with_context(|| format!("cannot add {name} to the initial file system"))?;
        self.to = Some(to);
        Ok(())
    }
}

/// Maps the guest's path `target` to its path in the initial file system.
fn below_layer(target: &Path) -> Result<PathBuf> {
    let mut inside = PathBuf::from(LAYER.trim_start_matches('/'));
    let mut first = true;
    for component in target.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(part) => {
                if first && MERGED.iter().any(|link| part == *link) {
                    inside.push("usr");
                }
                inside.push(part);
                first = false;
            }
            Component::ParentDir | Component::Prefix(_) => {
                bail!("guest path {} must not contain ..", target.display())
            }
        }
    }
    if first {
        bail!("guest path {} names no file", target.display());
    }
    Ok(inside)
}

fn name(path: &Path) -> Result<String> {
    match path.to_str() {
        Some(name) => Ok(name.to_owned()),
        None => bail!("the path {} is not valid UTF-8", path.display()),
    }
}

/// Returns the total size of the regular files in `path`, in bytes.
pub(crate) fn size_of(path: &Path) -> Result<u64> {
    let metadata = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    if !metadata.is_dir() {
        return Ok(metadata.size());
    }
    let mut total = 0;
    for entry in fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))? {
        let entry = entry.with_context(|| format!("cannot read {}", path.display()))?;
        if !entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
            total += size_of(&entry.path())?;
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn read(archive: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
        let mut found = BTreeMap::new();
        let mut rest = archive;
        loop {
            let mut reader = newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                return found;
            }
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut reader, &mut content).unwrap();
            let name = reader.entry().name().to_owned();
            let mode = reader.entry().mode();
            assert!(
                found.insert(name.clone(), (mode, content)).is_none(),
                "{name} twice"
            );
            rest = reader.finish().unwrap();
        }
    }

    #[test]
    fn files_are_stored_under_the_guests_paths() {
        let dir = tempfile::tempdir().unwrap();
        let agent = dir.path().join("agent");
        fs::write(&agent, "agent").unwrap();
        fs::create_dir(dir.path().join("tree")).unwrap();
        fs::write(dir.path().join("tree/file"), "file").unwrap();
        std::os::unix::fs::symlink("file", dir.path().join("tree/link")).unwrap();
        let mut archive = Initramfs::begin(Vec::new(), &agent, &InitConfig::default()).unwrap();
        archive
            .layer(&dir.path().join("tree"), Path::new("/root/tree"))
            .unwrap();
        archive.layer(&agent, Path::new("/lib/modules/x")).unwrap();
        let entries = read(&archive.finish().unwrap());
        assert_eq!(entries["init"].1, b"agent");
        assert_eq!(entries["layer/root/tree/file"].1, b"file");
        assert_eq!(entries["layer/root/tree/link"], (SYMLINK, b"file".to_vec()));
        assert_eq!(entries["layer/root"].0 & 0o777, 0o700);
        assert_eq!(entries["layer/usr/lib/modules/x"].1, b"agent");
        assert!(!entries.contains_key("layer/lib"));
        assert_eq!(entries["dev/console"].0 & 0o170_000, 0o020_000);
    }

    #[test]
    fn refuses_paths_that_leave_the_guest() {
        assert!(below_layer(Path::new("/root/../../x")).is_err());
        assert!(below_layer(Path::new("/")).is_err());
    }
}
