//! A ConfigMap or Secret as a kubelet mounts it: the files are links through `..data`, which is switched at once.

use std::{
    cell::Cell,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

pub struct Volume {
    folder: PathBuf,
    /// Switches so far.
    version: Cell<u32>,
}

impl Volume {
    /// An empty one, in a folder of its own.
    pub fn new(parent: &Path, name: &str) -> Result<Self> {
        let volume = Self { folder: parent.join(name), version: Cell::new(0) };
        fs::create_dir(&volume.folder)?;
        volume.put(&[])?;
        Ok(volume)
    }

    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Where a file is, or would be.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Makes it hold these files and no others.
    pub fn put(&self, files: &[(&str, &str)]) -> Result<()> {
        let version = self.version.get() + 1;
        self.version.set(version);
        let here = |name: &str| self.folder.join(name);
        let next = format!("..version_{version}");
        fs::create_dir(here(&next))?;
        for (name, text) in files {
            fs::write(here(&next).join(name), text)?;
        }
        let last = fs::read_link(here("..data")).ok();
        symlink(&next, here("..data_tmp"))?;
        fs::rename(here("..data_tmp"), here("..data")).context("switching ..data")?;
        for (name, _) in files {
            if fs::symlink_metadata(here(name)).is_err() {
                symlink(Path::new("..data").join(name), here(name))?;
            }
        }
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with("..") && !files.iter().any(|(kept, _)| *kept == name) {
                fs::remove_file(entry.path())?;
            }
        }
        match last {
            Some(last) => Ok(fs::remove_dir_all(self.folder.join(last))?),
            None => Ok(()),
        }
    }
}
