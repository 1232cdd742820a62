//! MQTT over WebSocket: the handshake, and a stream of bytes made of frames.
//!
//! Promises: a client that does not finish its request holds nobody up, and not for long; the frames' payloads are one
//! stream whatever frames MQTT packets come in; an idle connection holds no buffer. Frames are worked on in the reader's own
//! buffer: libraries that hand out whole messages keep each until its end, which a client may put off.

mod frame;
mod handshake;

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use self::{
    frame::{Control, Decoder, Head},
    handshake::Refusal,
};

/// Reads that bring no payload before others get their turn.
const READS_A_TURN: usize = 8;
/// "Normal closure" (RFC 6455 section 7.4.1).
const NORMAL: u16 = 1000;

/// Why no WebSocket was opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotOpened {
    #[error("{0}")]
    Socket(#[from] io::Error),
    #[error("{0}")]
    Refused(#[from] Refusal),
}

/// Answers the request of a client; one that can't be agreed to is told so. Its time is bounded by the caller.
pub(super) async fn accept<S>(mut stream: S, origins: &[String]) -> Result<WsStream<S>, NotOpened>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match request(&mut stream, origins).await {
        Ok(answer) => {
            stream.write_all(answer.as_bytes()).await?;
            stream.flush().await?;
            Ok(WsStream::new(stream))
        }
        Err(NotOpened::Refused(refusal)) => {
            crate::connection::closing::last_word(&mut stream, refusal.response().as_bytes()).await;
            Err(NotOpened::Refused(refusal))
        }
        Err(error) => Err(error),
    }
}

async fn request<S: AsyncRead + Unpin>(stream: &mut S, origins: &[String]) -> Result<String, NotOpened> {
    let mut head = BytesMut::with_capacity(1024);
    loop {
        let before = head.len();
        if stream.read_buf(&mut head).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        match handshake::end(&head, before) {
            Some(end) if end < head.len() => return Err(handshake::HASTY.into()),
            Some(_) => return Ok(handshake::answer(&head, origins)?),
            None if head.len() >= handshake::LONGEST => return Err(handshake::TOO_LONG.into()),
            None => {}
        }
    }
}

/// A WebSocket as the stream of bytes that MQTT takes it for.
#[derive(Debug)]
pub(super) struct WsStream<S> {
    stream: S,
    decoder: Decoder,
    /// Of the binary frame that is being written.
    head: Head,
    /// Payload of that frame that was announced and is still to be written.
    announced: usize,
    /// A control frame to be written as soon as no other frame is under way.
    control: Vec<u8>,
    /// How much of it is written.
    control_at: usize,
    /// Nothing more is read: the client has closed.
    ended: bool,
    /// A close frame was written, or is about to be.
    closing: bool,
}

impl<S> WsStream<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    fn new(stream: S) -> Self {
        WsStream {
            stream,
            decoder: Decoder::default(),
            head: Head::default(),
            announced: 0,
            control: Vec::new(),
            control_at: 0,
            ended: false,
            closing: false,
        }
    }

    /// Leaves a control frame to be written; one that waits and has not begun gives way, so that no client that only pings
    /// fills a queue.
    fn answer(&mut self, frame: Vec<u8>) {
        if self.control_at == 0 && !self.closing {
            self.control = frame;
        }
    }

    fn close(&mut self, code: Option<u16>) {
        self.answer(frame::close(code));
        self.closing = true;
    }

    /// Writes the control frame that waits, unless a frame is under way.
    fn poll_control(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.announced > 0 || !self.head.rest().is_empty() {
            return Poll::Ready(Ok(()));
        }
        while let Some(rest) = self.control.get(self.control_at..).filter(|rest| !rest.is_empty()) {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.control_at += written;
        }
        (self.control, self.control_at) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }

    /// Answers what was asked, as far as the socket takes it now; what is left goes with the next write.
    fn say(&mut self, context: &mut Context<'_>) {
        // Whoever reads is told of a broken socket by its next read.
        if !self.control.is_empty() && matches!(self.poll_control(context), Poll::Ready(Ok(()))) {
            let _ = Pin::new(&mut self.stream).poll_flush(context);
        }
    }
}

impl<S> AsyncRead for WsStream<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        for _ in 0..READS_A_TURN {
            if this.ended {
                return Poll::Ready(Ok(()));
            }
            let before = buffer.filled().len();
            ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
            let arrived = buffer.filled_mut().get_mut(before..).unwrap_or_default();
            if arrived.is_empty() {
                this.ended = true;
                return Poll::Ready(Ok(()));
            }
            let decoded = match this.decoder.decode(arrived) {
                Ok(decoded) => decoded,
                Err(fault) => {
                    buffer.set_filled(before);
                    this.ended = true;
                    this.close(Some(fault.code()));
                    this.say(context);
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, fault)));
                }
            };
            buffer.set_filled(before + decoded.payload);
            match decoded.control {
                None => {}
                Some(Control::Ping(payload)) => this.answer(frame::pong(&payload)),
                Some(Control::Close(code)) => {
                    this.ended = true;
                    this.close(code);
                }
            }
            this.say(context);
            if decoded.payload > 0 {
                return Poll::Ready(Ok(()));
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S> AsyncWrite for WsStream<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    /// Whatever is not taken must be offered again, with more behind it or not: its frame has announced it.
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if this.announced == 0 {
            ready!(this.poll_control(context))?;
            if this.closing {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            this.head = Head::binary(bytes.len());
            this.announced = bytes.len();
        }
        loop {
            let payload = bytes.get(..this.announced).unwrap_or(bytes);
            let head = this.head.rest();
            let written = if head.is_empty() {
                ready!(Pin::new(&mut this.stream).poll_write(context, payload))?
            } else {
                let parts = [IoSlice::new(head), IoSlice::new(payload)];
                ready!(Pin::new(&mut this.stream).poll_write_vectored(context, &parts))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_payload = this.head.advance(written);
            this.announced -= of_payload;
            if of_payload > 0 {
                return Poll::Ready(Ok(of_payload));
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_control(context))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closing {
            // A pong that has begun is written to its end before it; it is short, and the socket is closed in any case.
            self.close(Some(NORMAL));
        }
        ready!(self.as_mut().poll_flush(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
