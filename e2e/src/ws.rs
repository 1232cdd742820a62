//! WebSocket as a client that nobody should have to meet: any request, and frames of any making.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{PATIENCE, wire::Transport};

/// A request as clients make it, without its end; headers may follow.
pub const REQUEST: &str = "GET /mqtt HTTP/1.1\r\nHost: broker\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";
const SUBPROTOCOL: &str = "Sec-WebSocket-Protocol: mqtt\r\n";
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// An open WebSocket.
pub struct Ws {
    stream: Box<dyn Transport>,
    /// Bytes of a frame that a write makes, at most.
    piece: usize,
    /// Payload of the frame that is being read.
    left: u64,
    /// Control frames that came: kind and payload.
    pub control: Vec<(u8, Vec<u8>)>,
}

/// Connects without a request.
pub fn socket(broker: SocketAddr) -> Result<TcpStream> {
    let socket = TcpStream::connect_timeout(&broker, PATIENCE)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// The head of the answer to a request.
pub fn ask(stream: &mut impl Transport, request: &str) -> Result<String> {
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(stream.read(&mut byte)? == 1, "closed after {:?}", String::from_utf8_lossy(&head));
        head.extend(byte);
    }
    Ok(String::from_utf8(head)?)
}

/// A client's frame.
pub fn frame(first: u8, payload: &[u8]) -> Result<Vec<u8>> {
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..126 => frame.push(0x80 | u8::try_from(length)?),
        length => {
            frame.push(0x80 | 126);
            frame.extend(u16::try_from(length)?.to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    Ok(frame)
}

impl Ws {
    /// Opens one over TCP, whose writes go in frames of at most so many bytes.
    pub fn connect(broker: SocketAddr, piece: usize) -> Result<Self> {
        Self::over(Box::new(socket(broker)?), piece)
    }

    pub fn over(mut stream: Box<dyn Transport>, piece: usize) -> Result<Self> {
        let answer = ask(&mut stream, &format!("{REQUEST}{SUBPROTOCOL}\r\n"))?;
        ensure!(answer.starts_with("HTTP/1.1 101 "), "no WebSocket: {answer}");
        Ok(Self { stream, piece, left: 0, control: Vec::new() })
    }

    /// Sends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes)?;
        Ok(self.stream.flush()?)
    }

    /// Reads until a control frame has come, and returns it.
    pub fn control(&mut self) -> Result<(u8, Vec<u8>)> {
        loop {
            if let Some(frame) = self.control.pop() {
                return Ok(frame);
            }
            if self.left == 0 && !self.next_frame().context("waiting for a control frame")? {
                bail!("closed without a control frame");
            }
            let mut payload = vec![0; usize::try_from(self.left)?];
            self.stream.read_exact(&mut payload)?;
            self.left = 0;
        }
    }

    /// Reads heads, and control frames whole, up to a frame with payload. False at the end.
    fn next_frame(&mut self) -> io::Result<bool> {
        let mut head = [0; 2];
        if self.stream.read(&mut head[..1])? == 0 {
            return Ok(false);
        }
        self.stream.read_exact(&mut head[1..])?;
        let [first, second] = head;
        let length = match second {
            127 => {
                let mut length = [0; 8];
                self.stream.read_exact(&mut length)?;
                u64::from_be_bytes(length)
            }
            126 => {
                let mut length = [0; 2];
                self.stream.read_exact(&mut length)?;
                u64::from(u16::from_be_bytes(length))
            }
            length @ 0..126 => u64::from(length),
            _ => return Err(io::Error::other("a masked frame of a server")),
        };
        match first {
            0x82 => self.left = length,
            0x88..=0x8a => {
                let mut payload = vec![0; usize::try_from(length).map_err(io::Error::other)?];
                self.stream.read_exact(&mut payload)?;
                self.control.push((first & 0xf, payload));
            }
            _ => return Err(io::Error::other(format!("a frame that begins with {first:#x}"))),
        }
        Ok(true)
    }
}

impl Read for Ws {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left == 0 {
            if self.control.iter().any(|(kind, _)| *kind == 8) || !self.next_frame()? {
                return Ok(0);
            }
        }
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.stream.read(buffer.get_mut(..most).unwrap_or_default())?;
        self.left -= read as u64;
        Ok(read)
    }
}

impl Write for Ws {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = bytes.get(..self.piece).unwrap_or(bytes);
        self.stream.write_all(&frame(0x82, piece).map_err(io::Error::other)?)?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Transport for Ws {
    fn wait_at_most(&self, limit: Duration) -> io::Result<()> {
        self.stream.wait_at_most(limit)
    }
}
