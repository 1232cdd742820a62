//! One non-blocking socket: reads through a shared buffer, keeps only the unfinished packet, batches writes.

use std::io::{self, Read, Write};
use std::net::SocketAddr;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use super::LoadError;
use super::wire::{self, Packet, WireError};

/// Bytes of the buffer that all connections read through.
pub(super) const SCRATCH: usize = 256 * 1024;

pub(super) struct Conn {
    stream: TcpStream,
    index: usize,
    /// Written by packets' encoders, sent by [`Conn::flush`].
    pub(super) out: Vec<u8>,
    sent: usize,
    /// The start of a packet whose end has not come.
    partial: Vec<u8>,
}

/// Whether the other end is still there.
#[derive(PartialEq, Eq)]
pub(super) enum Peer {
    There,
    Gone,
}

impl Conn {
    /// Begins to connect; `index` is the token of its events.
    pub(super) fn open(addr: SocketAddr, index: usize, registry: &Registry) -> Result<Self, LoadError> {
        let failed = |source| LoadError::Io { what: "cannot open a connection", source };
        let mut stream = TcpStream::connect(addr).map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        // Edge-triggered: an idle socket costs nothing, and a full one is told when it has room.
        registry
            .register(&mut stream, Token(index), Interest::READABLE | Interest::WRITABLE)
            .map_err(failed)?;
        Ok(Self { stream, index, out: Vec::new(), sent: 0, partial: Vec::new() })
    }

    /// Whether the connection is up; an error when it was refused.
    pub(super) fn connected(&self) -> Result<bool, LoadError> {
        let failed = |source| LoadError::Io { what: "cannot connect to the broker", source };
        if let Some(error) = self.stream.take_error().map_err(failed)? {
            return Err(failed(error));
        }
        match self.stream.peer_addr() {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotConnected => Ok(false),
            Err(e) => Err(failed(e)),
        }
    }

    /// Reads all there is and hands each packet to `each`, which may write answers to its second argument.
    pub(super) fn receive(
        &mut self,
        scratch: &mut [u8],
        mut each: impl FnMut(Packet<'_>, &mut Vec<u8>) -> Result<(), LoadError>,
    ) -> Result<Peer, LoadError> {
        loop {
            let held = self.partial.len();
            let Some((kept, free)) = scratch.split_at_mut_checked(held).filter(|(_, free)| !free.is_empty())
            else {
                return Err(LoadError::Wire { connection: self.index, source: WireError::TooLarge });
            };
            let read = match self.stream.read(free) {
                Ok(0) => return Ok(Peer::Gone),
                Ok(read) => read,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Peer::There),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return Ok(Peer::Gone),
            };
            let room = free.len();
            kept.copy_from_slice(&self.partial);
            self.partial.clear();
            let mut rest = scratch.get(..held + read).unwrap_or_default();
            loop {
                match wire::split(rest) {
                    Ok(Some((packet, after))) => {
                        each(packet, &mut self.out)?;
                        rest = after;
                    }
                    Ok(None) => break,
                    Err(source) => return Err(LoadError::Wire { connection: self.index, source }),
                }
            }
            self.partial.extend_from_slice(rest);
            // A read that did not fill its buffer has emptied the socket; the next byte is a new event.
            if read < room {
                return Ok(Peer::There);
            }
        }
    }

    /// Sends what has been written; what the socket does not take stays for the next writable event.
    pub(super) fn flush(&mut self) -> Peer {
        while let Some(pending) = self.out.get(self.sent..).filter(|pending| !pending.is_empty()) {
            match self.stream.write(pending) {
                Ok(written) => self.sent += written,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Peer::There,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Peer::Gone,
            }
        }
        self.out.clear();
        self.sent = 0;
        Peer::There
    }

    /// Bytes written and not yet taken by the socket.
    pub(super) fn pending(&self) -> usize {
        self.out.len() - self.sent
    }
}
