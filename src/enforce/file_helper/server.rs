//! Handles the daemon's requests in the file helper, one at a time, until the daemon hangs up.

use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::retry_on_intr;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::protocol::{FileReply, FileRequest, MAX_MESSAGE_LEN};
use crate::enforce::BanContext;
use crate::enforce::helper_socket::{HelperError, encode, next_request};
use crate::enforce::hosts_deny::HostsDeny;
use crate::types::BanTarget;

/// Maximum number of bans, and of targets, in one change: the default size of the kernel's sets.
const MAX_CHANGES: usize = 131_072;

/// Opens a file for appending.
pub type Open = fn(&Path) -> io::Result<File>;

/// The files that the helper serves; requests for `None` are refused.
#[derive(Clone, Debug, Default)]
pub struct Files {
    pub hosts_deny: Option<HostsDeny>,
    /// `report.json_file` and the function that opens it.
    pub json_file: Option<(PathBuf, Open)>,
}

/// Serves the daemon at the other end of `socket` until it hangs up.
///
/// # Errors
/// An invalid request, or a change larger than any that a daemon makes.
pub fn serve(socket: &OwnedFd, files: &Files) -> Result<(), HelperError> {
    let mut buffer = vec![0; MAX_MESSAGE_LEN];
    // The change of hosts.deny whose last part is outstanding.
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    while let Some(request) = next_request(socket, &mut buffer)? {
        match request {
            FileRequest::Edit { add, remove, last } => {
                added.extend(add);
                removed.extend(remove);
                if added.len().max(removed.len()) > MAX_CHANGES {
                    return Err(HelperError::InvalidRequest);
                }
                if last {
                    answer(socket, &edited(files, &added, &removed), None);
                    (added, removed) = Default::default();
                }
            }
            FileRequest::Read => answer_file(socket, files.hosts_deny.as_ref().map(HostsDeny::open)),
            FileRequest::OpenLog => {
                answer_file(socket, files.json_file.as_ref().map(|(path, open)| log(path, *open).map(Some)))
            }
        }
    }
    Ok(())
}

fn edited(files: &Files, add: &[BanContext], remove: &[BanTarget]) -> FileReply {
    match &files.hosts_deny {
        None => FileReply::Failed(NOT_SERVED.to_owned()),
        Some(hosts_deny) => {
            hosts_deny.apply(add, remove).map_or_else(|error| FileReply::Failed(error.to_string()), |_| FileReply::Done)
        }
    }
}

const NOT_SERVED: &str = "refused: the configuration did not name this file when portsentry started; restart \
                          portsentry";

/// Opens the file. Root must not append to a file that has a second hard link.
fn log(path: &Path, open: Open) -> io::Result<File> {
    let file = open(path)?;
    if file.metadata()?.nlink() == 1 {
        Ok(file)
    } else {
        Err(io::Error::other("refused: the file has a second hard link; remove one of the two"))
    }
}

fn answer_file<E: ToString>(socket: &OwnedFd, file: Option<Result<Option<File>, E>>) {
    match file {
        None => answer(socket, &FileReply::Failed(NOT_SERVED.to_owned()), None),
        Some(Ok(Some(file))) => answer(socket, &FileReply::Done, Some(file.as_fd())),
        Some(Ok(None)) => answer(socket, &FileReply::Missing, None),
        Some(Err(error)) => answer(socket, &FileReply::Failed(error.to_string()), None),
    }
}

fn answer(socket: &OwnedFd, answer: &FileReply, file: Option<BorrowedFd<'_>>) {
    let bytes = encode(answer).unwrap_or_default();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = file.into_iter().collect();
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    // A daemon that has ended needs no answer.
    let _ = retry_on_intr(|| sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL));
}
