//! Connections in memory, between a model client and a node: with delays, split reads, cuts, resets, and peers that
//! vanish without a word.

use std::{
    collections::VecDeque,
    io,
    ops::Range,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

/// One connection as the simulation sees it.
pub(super) struct Wire {
    inner: Mutex<Inner>,
    /// The node that it leads to.
    pub(super) node: usize,
}

struct Inner {
    up: Half,
    down: Half,
    /// Nothing arrives on either side while it is cut.
    cut: bool,
    delay: Range<u64>,
    /// Bytes that the node may write before the client has read them.
    window: usize,
    random: fastrand::Rng,
    /// Nobody is told that the node's end is gone.
    silent: bool,
    node_closed: Option<Instant>,
    node_wrote: Option<Instant>,
}

/// One direction.
#[derive(Default)]
struct Half {
    chunks: VecDeque<(Instant, Bytes)>,
    bytes: usize,
    /// When the end is seen: behind the last chunk.
    end: Option<Instant>,
    reset: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// What a node gets from its listener.
pub(super) struct NodeEnd {
    wire: Arc<Wire>,
    timer: Option<Pin<Box<Sleep>>>,
}

/// What a client reads from.
pub(super) struct ClientEnd {
    pub(super) wire: Arc<Wire>,
    timer: Option<Pin<Box<Sleep>>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

/// `delay` in milliseconds, one way.
pub(super) fn connect(
    node: usize,
    random: fastrand::Rng,
    delay: Range<u64>,
    window: usize,
) -> (ClientEnd, NodeEnd, Arc<Wire>) {
    let inner = Mutex::new(Inner {
        up: Half::default(),
        down: Half::default(),
        cut: false,
        delay,
        window,
        random,
        silent: false,
        node_closed: None,
        node_wrote: None,
    });
    let wire = Arc::new(Wire { inner, node });
    let client = ClientEnd { wire: wire.clone(), timer: None };
    (client, NodeEnd { wire: wire.clone(), timer: None }, wire)
}

impl Wire {
    pub(super) fn set_delay(&self, delay: Range<u64>) {
        self.inner.lock().delay = delay;
    }

    /// Cuts it or lets what was held back arrive.
    pub(super) fn cut(&self, cut: bool) {
        let mut inner = self.inner.lock();
        inner.cut = cut;
        inner.wake_readers();
    }

    /// The client's end is gone, and the node hears nothing of it.
    pub(super) fn vanish(&self) {
        let mut inner = self.inner.lock();
        inner.cut = true;
        inner.up.chunks.clear();
    }

    /// The client closes in order.
    pub(super) fn close(&self) {
        let mut inner = self.inner.lock();
        let at = inner.arrival(Way::Up);
        inner.up.end.get_or_insert(at);
        inner.wake_readers();
    }

    /// The client breaks it off: what is on its way is lost.
    pub(super) fn reset(&self) {
        let mut inner = self.inner.lock();
        inner.up.break_off();
        inner.down.break_off();
        inner.wake_readers();
    }

    /// The node dies. `silently`: with its machine, so that nobody tells the client.
    pub(super) fn node_dies(&self, silently: bool) {
        self.inner.lock().silent |= silently;
    }

    pub(super) fn send(&self, bytes: Bytes) {
        let mut inner = self.inner.lock();
        let at = inner.arrival(Way::Up);
        inner.up.push(at, bytes);
        inner.wake_readers();
    }

    /// When the node let go of it.
    pub(super) fn node_closed(&self) -> Option<Instant> {
        self.inner.lock().node_closed
    }

    /// When the node last wrote anything to a client that it had let in.
    pub(super) fn node_wrote(&self) -> Option<Instant> {
        self.inner.lock().node_wrote
    }
}

/// Whether a node begins with a CONNACK that lets nobody in: its session, if there is one, goes on to wait.
fn is_refusal(bytes: &[u8]) -> bool {
    matches!(bytes, [0x20, _, _, reason, ..] if *reason != 0)
}

impl Inner {
    /// When what is sent now arrives, not before what was sent earlier.
    fn arrival(&mut self, way: Way) -> Instant {
        let range = self.delay.clone();
        let delay = if range.is_empty() { range.start } else { self.random.u64(range) };
        let at = Instant::now() + Duration::from_millis(delay);
        let half = if way == Way::Up { &self.up } else { &self.down };
        half.chunks.back().map_or(at, |(last, _)| at.max(*last))
    }

    fn wake_readers(&mut self) {
        for waker in [self.up.reader.take(), self.down.reader.take()].into_iter().flatten() {
            waker.wake();
        }
    }

    /// What has arrived, at most `most` bytes; empty at the end.
    fn poll_read(
        &mut self,
        way: Way,
        timer: &mut Option<Pin<Box<Sleep>>>,
        most: usize,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<Bytes>> {
        let split = self.random.u32(0..10) == 0;
        let some = if split { 1 + self.random.usize(0..40) } else { usize::MAX };
        let cut = self.cut;
        let half = if way == Way::Up { &mut self.up } else { &mut self.down };
        if half.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        half.reader = Some(context.waker().clone());
        let next = half.chunks.front().map(|(at, _)| *at).or(half.end);
        let Some(at) = next.filter(|_| !cut) else { return Poll::Pending };
        if at > Instant::now() {
            let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
            if timer.deadline() != at {
                timer.as_mut().reset(at);
            }
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
        let Some((_, chunk)) = half.chunks.front_mut() else { return Poll::Ready(Ok(Bytes::new())) };
        let taken = chunk.split_to(most.min(some).min(chunk.len()));
        if chunk.is_empty() {
            half.chunks.pop_front();
        }
        half.bytes -= taken.len();
        if let Some(writer) = half.writer.take() {
            writer.wake();
        }
        Poll::Ready(Ok(taken))
    }
}

impl Half {
    fn push(&mut self, at: Instant, bytes: Bytes) {
        if !self.reset && self.end.is_none() && bytes.has_remaining() {
            self.bytes += bytes.len();
            self.chunks.push_back((at, bytes));
        }
    }

    fn break_off(&mut self) {
        self.reset = true;
        self.chunks.clear();
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }
}

impl ClientEnd {
    /// What has come; none at the end.
    pub(super) async fn receive(&mut self) -> Option<Bytes> {
        let ClientEnd { wire, timer } = self;
        let read =
            |context: &mut Context<'_>| wire.inner.lock().poll_read(Way::Down, timer, usize::MAX, context);
        std::future::poll_fn(read).await.ok().filter(|bytes| !bytes.is_empty())
    }
}

impl AsyncRead for NodeEnd {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let NodeEnd { wire, timer } = &mut *self;
        let read = wire.inner.lock().poll_read(Way::Up, timer, buffer.remaining(), context);
        read.map_ok(|bytes| buffer.put_slice(&bytes))
    }
}

impl AsyncWrite for NodeEnd {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = self.wire.inner.lock();
        if inner.down.reset {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = inner.window.saturating_sub(inner.down.bytes);
        if room == 0 {
            inner.down.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let taken = room.min(bytes.len());
        let at = inner.arrival(Way::Down);
        inner.down.push(at, Bytes::copy_from_slice(&bytes[..taken]));
        if !is_refusal(bytes) {
            inner.node_wrote = Some(Instant::now());
        }
        inner.wake_readers();
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.wire.inner.lock();
        let at = inner.arrival(Way::Down);
        inner.down.end.get_or_insert(at);
        inner.wake_readers();
        Poll::Ready(Ok(()))
    }
}

impl Drop for NodeEnd {
    fn drop(&mut self) {
        let mut inner = self.wire.inner.lock();
        inner.node_closed = Some(Instant::now());
        if inner.silent {
            return;
        }
        if inner.up.chunks.is_empty() {
            let at = inner.arrival(Way::Down);
            inner.down.end.get_or_insert(at);
        } else {
            // A socket that is closed with unread bytes is reset, which takes what the other side has not read, too.
            inner.down.break_off();
        }
        inner.up.break_off();
        inner.wake_readers();
    }
}
