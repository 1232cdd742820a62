//! A process's CPU time and memory, as Linux counts them (proc(5)).

use std::fs;
use std::time::Duration;

use super::LoadError;

/// Linux reports process times to user space in hundredths of a second, whatever the kernel's own tick.
const TICKS_A_SECOND: u64 = 100;

/// User and system time of process `pid` ("self" for this one), threads that have ended included.
pub(super) fn cpu(pid: &str) -> Result<Duration, LoadError> {
    let path = format!("/proc/{pid}/stat");
    let text = read(&path)?;
    let ticks = cpu_ticks(&text).ok_or(LoadError::ProcShape { path })?;
    Ok(Duration::from_millis(ticks * 1000 / TICKS_A_SECOND))
}

/// Resident memory of process `pid` in KB.
pub(crate) fn resident_kb(pid: &str) -> Result<u64, LoadError> {
    let path = format!("/proc/{pid}/status");
    let text = read(&path)?;
    resident(&text).ok_or(LoadError::ProcShape { path })
}

fn read(path: &str) -> Result<String, LoadError> {
    fs::read_to_string(path).map_err(|source| LoadError::Proc { path: path.to_owned(), source })
}

/// Fields 14 and 15; the command in field 2 may hold spaces and parentheses.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_a_command_with_parentheses_and_spaces() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 100 0 0 0 70 30 5 5 20 0 1 0 99 1000 20 18446744073709551615";
        assert_eq!(cpu_ticks(stat), Some(100));
        assert_eq!(cpu_ticks("42 (x) S 1"), None);
    }

    #[test]
    fn resident_memory_is_the_vmrss_line() {
        assert_eq!(resident("Name:\tx\nVmHWM:\t 9 kB\nVmRSS:\t    5120 kB\n"), Some(5120));
        assert_eq!(resident("Name:\tx\n"), None);
    }
}
