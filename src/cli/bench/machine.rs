//! Where a measurement was made.

use std::path::Path;

/// The machine and the versions, as the report shows them.
#[derive(serde::Serialize, Debug)]
pub(super) struct Machine {
    pub(super) cpu: String,
    pub(super) cores: usize,
    pub(super) memory_gib: u64,
    pub(super) kernel: String,
    pub(super) file_system: String,
    pub(super) weir: &'static str,
    pub(super) build: &'static str,
    pub(super) sqlite: &'static str,
}

/// Describes this machine and the file system of a directory.
pub(super) fn describe(directory: &Path) -> Machine {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let value = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key));
        line.and_then(|line| line.split(':').nth(1)).map(|text| text.trim().to_owned())
    };
    let memory = value(&read("/proc/meminfo"), "MemTotal")
        .and_then(|text| text.trim_end_matches(" kB").parse::<u64>().ok());
    Machine {
        cpu: value(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".to_owned()),
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        memory_gib: memory.unwrap_or(0) >> 20,
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        file_system: file_system(directory, &read("/proc/self/mountinfo")),
        weir: env!("CARGO_PKG_VERSION"),
        build: if cfg!(debug_assertions) { "debug" } else { "release" },
        sqlite: rusqlite::version(),
    }
}

/// The type of the file system that holds a directory: that of the longest mount point above it.
fn file_system(directory: &Path, mountinfo: &str) -> String {
    let directory = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
    let mut best = (0, "unknown");
    for line in mountinfo.lines() {
        let (Some(point), Some((_, source))) = (line.split(' ').nth(4), line.split_once(" - "))
        else {
            continue;
        };
        if directory.starts_with(point) && point.len() >= best.0 {
            best = (point.len(), source.split(' ').next().unwrap_or("unknown"));
        }
    }
    best.1.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_mount_point_holds_a_directory() {
        let table =
            "1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:2 / /tmp rw shared:1 - tmpfs tmpfs rw\n";
        assert_eq!(file_system(Path::new("/tmp/x"), table), "tmpfs");
        assert_eq!(file_system(Path::new("/tmpx"), table), "ext4");
    }
}
