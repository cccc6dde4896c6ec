//! The client side: one request a connection, descriptors collected on the way.

use std::{
    fs,
    io::{self, IoSliceMut, Write},
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use memvisor_inspect::{CpuRegisters, Facts, MapError, MappedMemory, RamRegion};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

use super::{
    api::{
        ErrorInfo, MemoryInfo, RegistersInfo, RestInfo, StateInfo, Stats, TranslateAnswer, TranslateRequest,
        VmInfo,
    },
    server::DESCRIPTORS_MAX,
    socket::{SocketError, runtime_dir, socket_path},
};
use crate::{memory::SlotInfo, run::VmState, vcpu::Translation};

/// Longest wait for an answer: a pause waits for a checkpoint's audit.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Longest answer that is read.
const ANSWER_MAX: usize = 256 << 20;

/// Why a running guest did not answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody runs.
    #[error("no guest is running: start one with `memvisor run` (in {})", .0.display())]
    NoneRunning(PathBuf),
    /// More than one.
    #[error("{} guests are running ({}): choose one with --vm NAME", .0.len(), .0.join(", "))]
    Several(Vec<String>),
    /// Not this one.
    #[error("no guest named {name:?} is running{}", if others.is_empty() { String::new() } else { format!("; running: {}", others.join(", ")) })]
    NotRunning {
        /// The name.
        name: String,
        /// Who runs.
        others: Vec<String>,
    },
    /// Not a name.
    #[error(transparent)]
    Name(#[from] SocketError),
    /// The connection failed.
    #[error("guest {name:?} stopped answering ({step})")]
    Io {
        /// The guest.
        name: String,
        /// What was tried.
        step: &'static str,
        /// The host's answer.
        source: io::Error,
    },
    /// Its VMM refused.
    #[error("guest {name:?} answers {status}: {error}")]
    Refused {
        /// The guest.
        name: String,
        /// Status code.
        status: u16,
        /// What it says.
        error: String,
    },
    /// Not an answer.
    #[error("guest {name:?} gave an answer that cannot be read: {error}")]
    BadAnswer {
        /// The guest.
        name: String,
        /// What is wrong.
        error: String,
    },
    /// Its memory cannot be mapped.
    #[error("cannot map the memory of guest {name:?}")]
    Map {
        /// The guest.
        name: String,
        /// Why.
        source: MapError,
    },
}

/// A way to one running guest.
#[derive(Clone, Debug)]
pub struct Client {
    name: String,
    socket: PathBuf,
}

/// Names of all running guests of this user, ascending.
pub fn running() -> Vec<String> {
    let Ok(entries) = fs::read_dir(runtime_dir()) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let name = path.file_name()?.to_str()?.strip_suffix(".sock")?.to_owned();
            // A socket that nobody listens on is what a killed VMM left behind.
            UnixStream::connect(&path).ok().map(|_| name)
        })
        .collect();
    names.sort();
    names
}

impl Client {
    /// The guest `name`, or the only one that runs.
    ///
    /// # Errors
    /// If there is none, or more than one without a name.
    pub fn find(name: Option<&str>) -> Result<Client, ClientError> {
        let names = running();
        match name {
            Some(name) => {
                let socket = socket_path(name)?;
                if !names.iter().any(|running| running == name) {
                    return Err(ClientError::NotRunning { name: name.to_owned(), others: names });
                }
                Ok(Client { name: name.to_owned(), socket })
            }
            None => match names.as_slice() {
                [] => Err(ClientError::NoneRunning(runtime_dir())),
                [name] => Ok(Client { name: name.clone(), socket: socket_path(name)? }),
                _ => Err(ClientError::Several(names)),
            },
        }
    }

    /// The guest whose socket is at `path`.
    pub fn at(path: &Path) -> Client {
        let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        Client { name, socket: path.to_owned() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `GET /vm`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn info(&self) -> Result<VmInfo, ClientError> {
        self.json("GET", "/vm", &[])
    }

    /// `GET /vm/stats`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn stats(&self) -> Result<Stats, ClientError> {
        self.json("GET", "/vm/stats", &[])
    }

    /// `GET /vm/facts`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn facts(&self) -> Result<Facts, ClientError> {
        self.json("GET", "/vm/facts", &[])
    }

    /// `GET /vm/registers`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn registers(&self) -> Result<Vec<CpuRegisters>, ClientError> {
        self.json("GET", "/vm/registers", &[]).map(|info: RegistersInfo| info.cpus)
    }

    /// `GET /vm/console`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn console(&self) -> Result<String, ClientError> {
        let (body, _) = self.request("GET", "/vm/console", &[])?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// `PUT /vm/pause`; returns when the guest stands still.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn pause(&self) -> Result<VmState, ClientError> {
        self.json("PUT", "/vm/pause", &[]).map(|info: StateInfo| info.state)
    }

    /// `PUT /vm/rest`: pauses a guest that runs where nothing is half done; returns when it stands still.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn rest(&self) -> Result<RestInfo, ClientError> {
        self.json("PUT", "/vm/rest", &[])
    }

    /// `PUT /vm/resume`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn resume(&self) -> Result<VmState, ClientError> {
        self.json("PUT", "/vm/resume", &[]).map(|info: StateInfo| info.state)
    }

    /// `PUT /vm/shutdown`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn shutdown(&self) -> Result<(), ClientError> {
        self.json("PUT", "/vm/shutdown", &[]).map(|_: StateInfo| ())
    }

    /// `POST /vm/translate`: KVM's own answer to each address.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn translate(&self, vcpu: u32, vas: &[u64]) -> Result<Vec<Translation>, ClientError> {
        let body = self.encode(&TranslateRequest { vcpu, vas: vas.to_vec() })?;
        self.json("POST", "/vm/translate", &body).map(|answer: TranslateAnswer| answer.translations)
    }

    /// `GET /vm/memory`: slots, and a read-only descriptor of each.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn memory(&self) -> Result<Vec<(SlotInfo, OwnedFd)>, ClientError> {
        let (body, fds) = self.request("GET", "/vm/memory", &[])?;
        let info: MemoryInfo = self.decode(&body)?;
        if info.regions.len() != fds.len() {
            let error = format!("{} memory slots, {} descriptors", info.regions.len(), fds.len());
            return Err(ClientError::BadAnswer { name: self.name.clone(), error });
        }
        Ok(info.regions.into_iter().zip(fds).collect())
    }

    /// Guest memory, mapped read-only into this process.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn map_memory(&self) -> Result<MappedMemory, ClientError> {
        let parts = self
            .memory()?
            .into_iter()
            .map(|(slot, fd)| (RamRegion { gpa: slot.gpa, len: slot.len }, fd, slot.offset))
            .collect();
        MappedMemory::from_fds(parts).map_err(|source| ClientError::Map { name: self.name.clone(), source })
    }

    fn json<T: DeserializeOwned>(&self, method: &str, path: &str, body: &[u8]) -> Result<T, ClientError> {
        let (body, _) = self.request(method, path, body)?;
        self.decode(&body)
    }

    fn encode(&self, value: &impl Serialize) -> Result<Vec<u8>, ClientError> {
        serde_json::to_vec(value).map_err(|error| self.bad_answer(&error))
    }

    fn decode<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(body).map_err(|error| self.bad_answer(&error))
    }

    fn bad_answer(&self, error: &dyn std::fmt::Display) -> ClientError {
        ClientError::BadAnswer { name: self.name.clone(), error: error.to_string() }
    }

    fn request(&self, method: &str, path: &str, body: &[u8]) -> Result<(Vec<u8>, Vec<OwnedFd>), ClientError> {
        let fail = |step| move |source| ClientError::Io { name: self.name.clone(), step, source };
        let mut stream = UnixStream::connect(&self.socket).map_err(fail("connect"))?;
        stream
            .set_read_timeout(Some(TIMEOUT))
            .and_then(|()| stream.set_write_timeout(Some(TIMEOUT)))
            .map_err(fail("set a time limit"))?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: memvisor\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).map_err(fail("send"))?;
        let (bytes, fds) = receive(&stream).map_err(fail("receive"))?;

        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut headers);
        let head_len = match response.parse(&bytes) {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) => return Err(self.bad_answer(&"it ends early")),
            Err(error) => return Err(self.bad_answer(&error)),
        };
        let status = response.code.unwrap_or(0);
        let body = bytes.get(head_len..).unwrap_or(&[]).to_vec();
        if !(200..300).contains(&status) {
            let error = serde_json::from_slice(&body)
                .map_or_else(|_| String::from_utf8_lossy(&body).into_owned(), |info: ErrorInfo| info.error);
            return Err(ClientError::Refused { name: self.name.clone(), status, error });
        }
        Ok((body, fds))
    }
}

/// Reads to the end of the stream, with all descriptors that come along.
fn receive(stream: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let (mut bytes, mut fds) = (Vec::new(), Vec::new());
    let mut chunk = vec![0; 65536];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    loop {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut chunk)];
        let got = match rustix::net::recvmsg(stream, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) => message.bytes,
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        if got == 0 {
            return Ok((bytes, fds));
        }
        bytes.extend_from_slice(chunk.get(..got).unwrap_or(&[]));
        if bytes.len() > ANSWER_MAX {
            return Err(io::Error::other("the answer is too long"));
        }
    }
}
