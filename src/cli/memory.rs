//! How much memory there is for this process: of the machine, and within the limits of its control groups.

use std::fs;
use std::path::{Path, PathBuf};

/// Memory that could be used without taking it from anybody, in bytes. `None` if the system does not say.
pub(crate) fn available_bytes() -> Option<u64> {
    available_bytes_in(Path::new("/"))
}

/// The same of a system whose files lie in a directory.
fn available_bytes_in(root: &Path) -> Option<u64> {
    let of_machine = text(&root.join("proc/meminfo")).and_then(|text| of_meminfo(&text));
    let of_groups = text(&root.join("proc/self/cgroup")).and_then(|text| of_groups(root, &text));
    of_machine.into_iter().chain(of_groups).min()
}

fn text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn of_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The smallest limit of the groups that a process is in, and of those above them. Each line is a number,
/// controllers and a path; without a controller it is of version 2.
fn of_groups(root: &Path, text: &str) -> Option<u64> {
    let mounted = root.join("sys/fs/cgroup");
    let limits = text.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let path = path.trim_start_matches('/');
        if controllers.is_empty() {
            return smallest(&mounted, path, "memory.max");
        }
        let is_of_memory = controllers.split(',').any(|controller| controller == "memory");
        let mounted = is_of_memory.then(|| mounted.join("memory"))?;
        smallest(&mounted, path, "memory.limit_in_bytes")
    });
    limits.min()
}

/// The smallest number in the files of a name, from a directory below `top` up to it. In a container the
/// path may be one that only its host sees: then `top` alone has a file.
fn smallest(top: &Path, path: &str, name: &str) -> Option<u64> {
    let directory: PathBuf = top.join(path);
    let directories = directory.ancestors().take_while(|directory| directory.starts_with(top));
    let numbers = directories.filter_map(|directory| text(&directory.join(name)));
    // Without a limit it is `max`, or the largest number there is.
    numbers.filter_map(|text| text.trim().parse().ok()).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const MEMINFO: &str = "MemTotal:       25165824 kB\nMemFree:         1048576 kB\n\
                           MemAvailable:   16777216 kB\nBuffers:          111111 kB\n";

    fn available(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        for (path, contents) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents).unwrap();
        }
        available_bytes_in(root.path())
    }

    #[test]
    fn without_limits_it_is_what_the_machine_has_to_spare() {
        let machine = ("proc/meminfo", MEMINFO);
        assert_eq!(available(&[machine]), Some(16 * GIB));
        let group = ("proc/self/cgroup", "0::/system.slice/hexz-nbd.service\n");
        let limit = ("sys/fs/cgroup/system.slice/hexz-nbd.service/memory.max", "max\n");
        assert_eq!(available(&[machine, group, limit]), Some(16 * GIB));
    }

    #[test]
    fn the_smallest_limit_of_all_groups_above_counts() {
        let machine = ("proc/meminfo", MEMINFO);
        let group = ("proc/self/cgroup", "0::/a/b/c\n");
        let inner = ("sys/fs/cgroup/a/b/c/memory.max", "8589934592\n");
        let outer = ("sys/fs/cgroup/a/memory.max", "2147483648\n");
        assert_eq!(available(&[machine, group, inner]), Some(8 * GIB));
        assert_eq!(available(&[machine, group, inner, outer]), Some(2 * GIB));
    }

    #[test]
    fn the_older_groups_and_containers_are_understood() {
        let machine = ("proc/meminfo", MEMINFO);
        let older = ("proc/self/cgroup", "4:cpu,memory:/docker/4f5e\n1:name=systemd:/\n0::/\n");
        let limit = ("sys/fs/cgroup/memory/docker/4f5e/memory.limit_in_bytes", "1073741824\n");
        let without = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(available(&[machine, older, limit, without]), Some(GIB));
        assert_eq!(available(&[machine, older, without]), Some(16 * GIB));
        // A container sees its own group as the top.
        let inside = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n");
        assert_eq!(available(&[machine, older, inside]), Some(GIB / 2));
    }

    #[test]
    fn a_system_that_says_nothing_is_no_error() {
        assert_eq!(available(&[]), None);
        assert_eq!(available(&[("proc/meminfo", "MemAvailable: lots\n")]), None);
        assert_eq!(available(&[("proc/self/cgroup", "nonsense\n0:\n")]), None);
    }

    #[test]
    fn this_machine_has_some() {
        assert!(available_bytes().is_some_and(|bytes| bytes > 1 << 20));
    }
}
