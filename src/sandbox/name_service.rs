//! Queries the user database, and the uids and gids mapped into this user namespace.
//!
//! References: getpwnam(3), user_namespaces(7).

use std::fs;

use nix::errno::Errno;

/// Converts a name service result; several errors mean that there is no such entry (getpwnam(3)).
pub(super) fn looked_up<T>(found: nix::Result<Option<T>>) -> nix::Result<Option<T>> {
    match found {
        Err(Errno::ENOENT | Errno::ESRCH | Errno::EBADF | Errno::EPERM) => Ok(None),
        other => other,
    }
}

/// True if this user namespace maps `number` as a uid and as a gid.
pub(super) fn is_mapped(number: u32) -> bool {
    ["/proc/self/uid_map", "/proc/self/gid_map"]
        .iter()
        .all(|path| fs::read_to_string(path).map_or(true, |map| maps(&map, number)))
}

/// Reads one map. Its lines contain the first id inside, the first id outside, and the count.
fn maps(map: &str, number: u32) -> bool {
    map.lines().any(|line| {
        let mut words = line.split_whitespace().map(str::parse::<u32>);
        let (Some(Ok(first)), Some(_), Some(Ok(count))) = (words.next(), words.next(), words.next()) else {
            return false;
        };
        number.checked_sub(first).is_some_and(|offset| offset < count)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn map_of_a_user_namespace_is_read() {
        let whole = "         0          0 4294967295\n";
        assert!(maps(whole, 0) && maps(whole, 61_184));
        let container = "0 100000 65536\n";
        assert!(maps(container, 65_519) && !maps(container, 65_536));
        assert!(!maps("0 1000 1\n", 61_184) && !maps("", 0) && !maps("0 x\n", 0));
    }
}
