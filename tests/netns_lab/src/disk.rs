//! Mounts a small file system, for tests of a full disk.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system mounted over a directory; unmounted when dropped.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts a tmpfs of `size` (for example `2m`) over a directory that the program does not use yet.
    pub fn mount(directory: &Path, size: &str) -> Self {
        let options = format!("size={size},mode=700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(directory).status();
        assert!(mounted.expect("mount runs").success(), "mount failed; the test needs CAP_SYS_ADMIN");
        Self(directory.to_owned())
    }

    /// Fills the file system completely.
    pub fn fill(&self) {
        let mut file = File::create(self.filler()).expect("one more file fits");
        while file.write_all(&[b'x'; 512]).is_ok() {}
    }

    /// Frees the space that [`SmallDisk::fill`] took.
    pub fn empty(&self) {
        std::fs::remove_file(self.filler()).expect("the disk was filled");
    }

    /// Named like a file of the program, because the program refuses a state directory with other files.
    fn filler(&self) -> PathBuf {
        self.0.join("portsentry.history.filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}
