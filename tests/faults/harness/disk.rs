//! A small file system of its own: to fill it up, or to cut its power.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::until;

/// `EXT4_IOC_SHUTDOWN` of the kernel's ext4.h: `_IOR('X', 125, __u32)`.
const EXT4_IOC_SHUTDOWN: libc::Ioctl = 0x8004_587d;
/// `EXT4_GOING_FLAGS_NOLOGFLUSH`: not even the journal of the file system is written out.
static NO_LOG_FLUSH: u32 = 2;

/// A mounted file system that nothing else uses. Unmounted when dropped.
pub(crate) struct Disk {
    pub(crate) path: PathBuf,
    image: Option<PathBuf>,
}

impl Disk {
    /// In memory. `None`, with the reason printed, if this user may not mount.
    pub(crate) fn tmpfs(path: &Path, megabytes: u32) -> Option<Self> {
        let size = format!("size={megabytes}m");
        let disk = Self { path: path.to_owned(), image: None };
        fs::create_dir_all(path).unwrap();
        disk.mount(&["-t", "tmpfs", "-o", &size, "tmpfs"]).then_some(disk)
    }

    /// An ext4 in a file. `None`, with the reason printed, if this user may not mount.
    pub(crate) fn ext4(path: &Path, megabytes: u64) -> Option<Self> {
        let image = path.with_extension("img");
        File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
        fs::create_dir_all(path).unwrap();
        let mut mkfs = Command::new("mkfs.ext4");
        let made = mkfs.args(["-q", "-F", "-E", "lazy_itable_init=0"]).arg(&image).output();
        if !made.is_ok_and(|output| output.status.success()) {
            println!("left out: mkfs.ext4 does not work here");
            return None;
        }
        let disk = Self { path: path.to_owned(), image: Some(image) };
        disk.mount_image().then_some(disk)
    }

    fn mount_image(&self) -> bool {
        let image = self.image.as_ref().unwrap().to_str().unwrap();
        self.mount(&["-t", "ext4", "-o", "loop", image])
    }

    fn mount(&self, args: &[&str]) -> bool {
        let output = Command::new("mount").args(args).arg(&self.path).output().unwrap();
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            println!("left out: cannot mount a small file system: {}", error.trim_end());
        }
        output.status.success()
    }

    /// Everything that is not on the disk yet is lost; from now on all of it fails.
    pub(crate) fn cut_power(&self) {
        let root = File::open(&self.path).unwrap();
        // SAFETY: the call reads one u32, which lives on the stack.
        let result = unsafe { libc::ioctl(root.as_raw_fd(), EXT4_IOC_SHUTDOWN, &NO_LOG_FLUSH) };
        assert_eq!(result, 0, "shut down ext4: {}", std::io::Error::last_os_error());
    }

    /// Mounts it again, which repairs it. Nobody may have files open.
    pub(crate) fn power_up(&self) {
        until("the dead disk is unmounted", || {
            let output = Command::new("umount").arg(&self.path).output().unwrap();
            output.status.success().then_some(())
        });
        assert!(self.mount_image());
    }

    /// Free bytes.
    pub(crate) fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.path).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// Fills it with a file except for so many bytes; returns the file.
    pub(crate) fn fill(&self, leave: u64) -> PathBuf {
        let ballast = self.path.join("ballast");
        let bytes = usize::try_from(self.free().saturating_sub(leave)).unwrap();
        fs::write(&ballast, vec![1; bytes]).unwrap();
        ballast
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.path).output());
    }
}
