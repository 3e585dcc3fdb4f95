//! Reads files that other programs maintain, with a size limit, extracts addresses, and watches for changes. A file
//! that is missing, unreadable or not a regular file counts as empty.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Seek, SeekFrom};
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};

use crate::file::{FileStamp, open_regular, read_up_to};
use crate::types::{is_host_address, update};

/// The first `limit` bytes of a file.
pub(super) fn beginning(path: &Path, limit: u64) -> Vec<u8> {
    read(path, limit).unwrap_or_default()
}

/// As [`beginning`], but returns errors.
pub(super) fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    open_regular(path).and_then(|file| read_up_to(file, limit))
}

/// The last `limit` bytes of a file that is only appended to.
pub(super) fn end(path: &Path, limit: u64) -> Vec<u8> {
    let read = open_regular(path).and_then(|mut file| {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(limit)))?;
        read_up_to(file, limit)
    });
    read.unwrap_or_default()
}

/// At most `limit` entries of a directory whose names match `wanted`, sorted.
pub(super) fn listing(directory: &Path, limit: usize, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    let named = entries.filter(|entry| entry.file_name().to_str().is_some_and(&wanted));
    let mut paths: Vec<PathBuf> = named.take(limit).map(|entry| entry.path()).collect();
    paths.sort_unstable();
    paths
}

/// The valid UTF-8 lines of a text.
pub(super) fn lines(text: &[u8]) -> impl Iterator<Item = &str> {
    text.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok()).map(str::trim)
}

/// Parses the address of another host; `None` for names, and for addresses that no packet from outside has.
pub(super) fn address(text: &str) -> Option<IpAddr> {
    parse_zoned(text).and_then(foreign)
}

/// Parses an address and drops its zone.
pub(super) fn parse_zoned(text: &str) -> Option<IpAddr> {
    match text.split_once('%') {
        // A zone ("fe80::1%eth0") selects the interface; packets from that address do not contain it.
        Some((address, _zone)) => address.parse::<Ipv6Addr>().ok().map(IpAddr::from),
        None => text.parse().ok(),
    }
}

/// `address` in canonical form, if it can belong to another host.
pub fn foreign(address: IpAddr) -> Option<IpAddr> {
    Some(address.to_canonical()).filter(is_host_address)
}

/// `addresses` sorted, without duplicates, at most `limit`.
pub(super) fn in_order(addresses: impl Iterator<Item = IpAddr>, limit: usize) -> Vec<IpAddr> {
    let mut kept = BTreeSet::new();
    for address in addresses {
        kept.insert(address);
        if kept.len() >= limit {
            break;
        }
    }
    kept.into_iter().collect()
}

/// A group of files that are read together.
pub trait Files {
    /// The paths whose changes matter, including directories in which files appear and disappear. Some may be missing;
    /// the list is limited.
    fn paths(&self) -> Vec<PathBuf>;
}

impl Files for PathBuf {
    fn paths(&self) -> Vec<PathBuf> {
        vec![self.clone()]
    }
}

impl<A: Files, B: Files> Files for (A, B) {
    fn paths(&self) -> Vec<PathBuf> {
        self.0.paths().into_iter().chain(self.1.paths()).collect()
    }
}

/// Notices that one of the files was written, replaced, added or removed, at the cost of a stat(2) per path.
#[derive(Debug)]
pub struct FileWatch<F> {
    files: F,
    /// Stored with their paths, so that a file that appears or disappears within one tick of the file clock is noticed.
    seen: Vec<(PathBuf, Option<FileStamp>)>,
}

impl<F: Files> FileWatch<F> {
    /// Watches `files` from now on. To miss no change, create it before the files are read.
    pub fn new(files: F) -> Self {
        let seen = stamps(&files);
        Self { files, seen }
    }

    pub fn files(&self) -> &F {
        &self.files
    }

    /// True if anything has changed since the last call; then read the files again.
    #[must_use]
    pub fn poll(&mut self) -> bool {
        update(&mut self.seen, stamps(&self.files))
    }
}

/// The stamps of `files`, `None` for a path that does not exist. Symlinks are followed.
fn stamps(files: &impl Files) -> Vec<(PathBuf, Option<FileStamp>)> {
    let stamp = |path: &PathBuf| fs::metadata(path).ok().as_ref().map(FileStamp::from);
    files.paths().into_iter().map(|path| (path.clone(), stamp(&path))).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Asserts that nothing has changed, and that one call of `poll` notices each of these changes.
    pub(in crate::host) fn assert_noticed_once<F: Files>(watch: &mut FileWatch<F>, changes: &[&dyn Fn()]) {
        assert!(!watch.poll());
        for (number, change) in changes.iter().enumerate() {
            change();
            assert!(watch.poll() && !watch.poll(), "change {number}");
        }
    }

    #[test]
    fn address_is_read_without_zone() {
        let read = |text| address(text).map(|address| address.to_string());
        assert_eq!(read("203.0.113.9").unwrap(), "203.0.113.9");
        assert_eq!(read("fe80::1%eth0").unwrap(), "fe80::1");
        assert_eq!(read("::ffff:203.0.113.9").unwrap(), "203.0.113.9");
        for text in
            ["", "host.example", ":0", "127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255"]
        {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(read("203.0.113.9%eth0"), None);
    }

    #[test]
    fn file_is_read_to_its_limit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "abcdef").unwrap();
        assert_eq!((beginning(&path, 4), end(&path, 4)), (b"abcd".to_vec(), b"cdef".to_vec()));
        assert_eq!((beginning(&path, 9), end(&path, 9)), (b"abcdef".to_vec(), b"abcdef".to_vec()));
    }

    #[test]
    fn non_regular_file_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
        for path in [fifo, directory.path().to_owned(), directory.path().join("missing")] {
            assert!(beginning(&path, 9).is_empty() && end(&path, 9).is_empty(), "{}", path.display());
        }
    }

    #[test]
    fn changed_file_is_noticed_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let mut watch = FileWatch::new(path.clone());
        assert_noticed_once(&mut watch, &[&|| fs::write(&path, "one").unwrap()]);
        // Another file is no change, which `assert_noticed_once` checks first.
        let new = directory.path().join("new");
        fs::write(&new, "two").unwrap();
        let changes: [&dyn Fn(); 2] = [&|| fs::rename(&new, &path).unwrap(), &|| fs::remove_file(&path).unwrap()];
        assert_noticed_once(&mut watch, &changes);
    }

    #[test]
    fn file_behind_symlink_is_watched() {
        let directory = tempfile::tempdir().unwrap();
        let [link, one, two] = ["link", "one", "two"].map(|name| directory.path().join(name));
        fs::write(&one, "one").unwrap();
        fs::write(&two, "two").unwrap();
        std::os::unix::fs::symlink(&one, &link).unwrap();
        let mut watch = FileWatch::new(link.clone());
        fs::write(&one, "longer").unwrap();
        assert!(watch.poll() && !watch.poll());
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(&two, &link).unwrap();
        assert!(watch.poll() && !watch.poll());
    }
}
