//! Sends requests to the file helper, one at a time, and waits for each answer. Once the helper has ended, each request
//! fails until the daemon is restarted.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::retry_on_intr;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg};

use super::protocol::{FileReply, FileRequest, MAX_IN_MESSAGE, MAX_MESSAGE_LEN};
use crate::enforce::BanContext;
use crate::enforce::helper_socket::{decode, send_message};
use crate::file::read_up_to;
use crate::types::BanTarget;

/// The daemon's handle of the file helper. Cheap to clone.
#[derive(Clone, Debug)]
pub struct FileHelper {
    /// Serialises the requests.
    socket: Arc<Mutex<OwnedFd>>,
    process: u32,
}

impl FileHelper {
    /// A handle of the process with id `process` at the other end of `socket` (`SOCK_SEQPACKET`).
    pub fn new(socket: OwnedFd, process: u32) -> Self {
        Self { socket: Arc::new(Mutex::new(socket)), process }
    }

    /// Changes hosts.deny: adds lines for `add` and removes the lines of `remove`.
    ///
    /// # Errors
    /// The helper's error, or that it has ended.
    pub fn edit(&self, add: &[BanContext], remove: &[BanTarget]) -> io::Result<()> {
        let chunks = add.len().div_ceil(MAX_IN_MESSAGE).max(remove.len().div_ceil(MAX_IN_MESSAGE)).max(1);
        let (mut adds, mut removes) = (add.chunks(MAX_IN_MESSAGE), remove.chunks(MAX_IN_MESSAGE));
        let requests = (1..=chunks).map(|number| FileRequest::Edit {
            add: adds.next().unwrap_or_default().to_vec(),
            remove: removes.next().unwrap_or_default().to_vec(),
            last: number == chunks,
        });
        self.ask(requests).map(drop)
    }

    /// The bytes of hosts.deny; `None` if the file does not exist.
    ///
    /// # Errors
    /// As for [`FileHelper::edit`]; also if the file cannot be read.
    pub fn read(&self, limit: u64) -> io::Result<Option<Vec<u8>>> {
        self.ask(std::iter::once(FileRequest::Read))?.map(|file| read_up_to(file, limit)).transpose()
    }

    /// Opens `report.json_file` for appending.
    ///
    /// # Errors
    /// As for [`FileHelper::edit`].
    pub fn open_log(&self) -> io::Result<File> {
        let file = self.ask(std::iter::once(FileRequest::OpenLog))?;
        file.ok_or_else(|| io::Error::other("the answer contains no file descriptor"))
    }

    fn ask(&self, requests: impl Iterator<Item = FileRequest>) -> io::Result<Option<File>> {
        let Self { socket, process } = self;
        let socket = socket.lock().unwrap_or_else(PoisonError::into_inner);
        let ended =
            || io::Error::other(format!("process {process}, which writes the file, has ended; restart portsentry"));
        for request in requests {
            send_message(&*socket, &request, SendFlags::empty()).map_err(|_| ended())?;
        }
        let mut bytes = vec![0; MAX_MESSAGE_LEN];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let receive = || recvmsg(&*socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC);
        let length = retry_on_intr(receive).map_err(|_| ended())?.bytes;
        let descriptors = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let file = descriptors.flatten().next().map(File::from);
        match bytes.get(..length).and_then(decode) {
            Some(FileReply::Done) => Ok(file),
            Some(FileReply::Missing) => Ok(None),
            Some(FileReply::Failed(reason)) => Err(io::Error::other(reason)),
            None => Err(ended()),
        }
    }
}
