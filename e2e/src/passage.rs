//! Connections passed on to somewhere else, byte by byte, and a gate before which all of them stand still.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use anyhow::Result;
use parking_lot::{Condvar, Mutex};

const CHUNK: usize = 16 * 1024;
const STACK: usize = 64 * 1024;
/// For the other side to take a connection.
const CONNECT: Duration = Duration::from_secs(1);

/// While it is shut nothing passes, and nothing is told so: what is sent arrives once it opens, as on a network that was cut.
#[derive(Default)]
pub struct Gate {
    shut: Mutex<bool>,
    moves: Condvar,
}

impl Gate {
    pub fn shut(&self, shut: bool) {
        *self.shut.lock() = shut;
        self.moves.notify_all();
    }

    fn pass(&self) {
        self.moves.wait_while(&mut self.shut.lock(), |shut| *shut);
    }
}

/// Copies both ways, on threads of their own, until either end is gone.
pub fn join(one: TcpStream, other: TcpStream, gate: &Arc<Gate>) -> io::Result<()> {
    one.set_nodelay(true)?;
    other.set_nodelay(true)?;
    for (from, to) in [(one.try_clone()?, other.try_clone()?), (other, one)] {
        let gate = gate.clone();
        thread::Builder::new().stack_size(STACK).spawn(move || {
            let _ = copy(&from, &to, &gate);
            // An end that was broken off is broken off on the other side, too.
            let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
        })?;
    }
    Ok(())
}

fn copy(mut from: &TcpStream, mut to: &TcpStream, gate: &Gate) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = from.read(&mut chunk)?;
        gate.pass();
        match chunk.get(..read) {
            Some(bytes) if read > 0 => to.write_all(bytes)?,
            _ => return Ok(()),
        }
    }
}

/// A port that leads to another one, through a gate.
pub struct Passage {
    pub address: SocketAddr,
    pub gate: Arc<Gate>,
    over: Arc<AtomicBool>,
}

impl Passage {
    pub fn open(socket: TcpListener, to: SocketAddr) -> Result<Self> {
        let (gate, over) = (Arc::new(Gate::default()), Arc::new(AtomicBool::new(false)));
        let address = socket.local_addr()?;
        let (inner, ends) = (gate.clone(), over.clone());
        thread::spawn(move || {
            for one in socket.incoming().flatten() {
                inner.pass();
                if ends.load(Relaxed) {
                    return;
                }
                // Refused: whoever asked hears it at once.
                let Ok(other) = TcpStream::connect_timeout(&to, CONNECT) else { continue };
                let _ = join(one, other, &inner);
            }
        });
        Ok(Self { address, gate, over })
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        self.gate.shut(false);
        // So that it looks.
        let _ = TcpStream::connect(self.address);
    }
}
