//! What the process may take of the machine's memory, and what gives way before it is gone.
//!
//! From nine tenths of the bound on new connections are refused; beyond the bound those for whom most waits are closed,
//! the largest first, until there is room again. What is known of memory is what the kernel says the process has.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::{limits::notice, node::Node};

const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Of what the machine has, or a container may have, unless the instance says.
const SHARE: u64 = 80;
/// Connections for whom this much waits go first. Each look that finds too little memory halves it.
const LARGEST: usize = 4 << 20;
/// Less does not count: what is taken then is taken by something else.
const SMALLEST: usize = 16 << 10;

#[derive(Debug)]
pub(crate) struct Memory {
    short: AtomicBool,
    /// Bytes that may wait for a connection.
    cutoff: AtomicUsize,
    resident: AtomicU64,
    bound: AtomicU64,
}

impl Default for Memory {
    fn default() -> Memory {
        Memory {
            short: AtomicBool::new(false),
            cutoff: AtomicUsize::new(usize::MAX),
            resident: AtomicU64::new(0),
            bound: AtomicU64::new(u64::MAX),
        }
    }
}

impl Memory {
    /// Whether newcomers must be refused.
    pub(crate) fn is_short(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }

    /// Whether a connection must go for whom this many bytes wait.
    pub(crate) fn is_too_much(&self, waiting: usize) -> bool {
        waiting >= self.cutoff.load(Ordering::Relaxed)
    }

    /// Bytes that the process has, and that it may have.
    pub(crate) fn figures(&self) -> (u64, u64) {
        (self.resident.load(Ordering::Relaxed), self.bound.load(Ordering::Relaxed))
    }

    /// Takes in what the process has now; true if the connections must look at what waits for them.
    fn see(&self, resident: u64, bound: u64) -> bool {
        self.resident.store(resident, Ordering::Relaxed);
        self.bound.store(bound, Ordering::Relaxed);
        self.short.store(resident >= bound / 10 * 9, Ordering::Relaxed);
        let cutoff = self.cutoff.load(Ordering::Relaxed);
        let next = match resident >= bound {
            true if cutoff == usize::MAX => LARGEST,
            true => (cutoff / 2).max(SMALLEST),
            false => usize::MAX,
        };
        self.cutoff.store(next, Ordering::Relaxed);
        next != usize::MAX
    }
}

/// Watches over the memory until its task is aborted.
pub(crate) async fn watch(node: Arc<Node>) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    let machine = available() / 100 * SHARE;
    loop {
        ticks.tick().await;
        let Some(resident) = resident() else { continue };
        let bound = node.settings().limits().memory.unwrap_or(machine);
        let memory = &node.admission.memory;
        let must_shed = memory.see(resident, bound);
        if memory.is_short() {
            let (resident, bound) = (resident >> 20, bound >> 20);
            notice!(node, memory, resident, bound, "short of memory (MiB): new connections are refused");
        }
        if must_shed {
            // Each looks at what waits for it.
            node.registry.call_all();
        }
    }
}

/// Bytes that the process has in memory.
fn resident() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    Some(pages * u64::try_from(rustix::param::page_size()).ok()?)
}

/// Bytes that there are for the process: of its control groups and the machine the least.
fn available() -> u64 {
    let read = |path: &str| fs::read_to_string(path).ok();
    let machine = read("/proc/meminfo").and_then(|text| total(&text));
    let groups = read("/proc/self/cgroup").unwrap_or_default();
    let limits = limit_files(&groups).into_iter().filter_map(|path| read(&path)?.trim().parse().ok());
    limits.chain(machine).min().unwrap_or(u64::MAX)
}

/// `MemTotal` of `/proc/meminfo`.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

/// Where limits may stand: in the process's control group and those above it, of either version. In a container the group
/// may be shown as the root of all.
fn limit_files(groups: &str) -> Vec<String> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        let mut path = path.trim_end_matches('/');
        loop {
            files.push(format!("{root}{path}/{file}"));
            match path.rsplit_once('/') {
                Some((above, _)) => path = above,
                None => break,
            }
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_comes_from_the_control_groups_and_the_machine() {
        let two = "0::/kubepods/pod1\n";
        let one = "4:memory:/a\n3:cpuset:/\n0::/\n";
        assert_eq!(
            limit_files(two),
            ["/kubepods/pod1", "/kubepods", ""].map(|path| format!("/sys/fs/cgroup{path}/memory.max"))
        );
        assert_eq!(
            limit_files(one),
            [
                "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory.max",
            ]
        );
        assert_eq!(total("MemFree: 1 kB\nMemTotal:       16384 kB\n"), Some(16 << 20));
        assert!(available() > 0 && resident().is_some_and(|bytes| bytes > 1 << 20));
    }

    #[test]
    fn newcomers_are_refused_first_and_then_the_largest_go() {
        let memory = Memory::default();
        let goes = |resident, waiting| {
            let looks = memory.see(resident, 1000);
            assert_eq!(looks, resident >= 1000);
            (memory.is_short(), memory.is_too_much(waiting))
        };
        assert_eq!(goes(899, usize::MAX - 1), (false, false));
        assert_eq!(goes(900, usize::MAX - 1), (true, false));
        assert_eq!(goes(1000, LARGEST - 1), (true, false));
        assert_eq!(goes(1000, LARGEST / 2), (true, true));
        for _ in 0..20 {
            goes(2000, 0);
        }
        assert_eq!(goes(2000, SMALLEST - 1), (true, false), "the small ones stay");
        assert_eq!(goes(800, usize::MAX - 1), (false, false));
        assert_eq!(goes(1000, LARGEST - 1), (true, false), "it begins with the largest again");
    }
}
