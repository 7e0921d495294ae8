//! A connection as bytes, plain or over TLS.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::doing;
use crate::tls::{Client, Records};

/// Room for what is received. It fits into the second cache of a core, and into it fit many small
/// replies.
pub(crate) const BUFFER_BYTES: usize = 256 * 1024;

/// Longest that a server may keep silent. A comparison ends, whatever a server does.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Link {
    stream: TcpStream,
    /// What was received: over TLS, from its start to `filled`, the beginning of a record.
    buffer: Vec<u8>,
    filled: usize,
    tls: Option<Records>,
    sealed: Vec<u8>,
    /// What was received before it was asked for with [`Link::exact`].
    early: Vec<u8>,
}

impl Link {
    /// `buffer` is one that another link does not need any more, or an empty one.
    pub(crate) fn connect(address: SocketAddr, mut buffer: Vec<u8>) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        buffer.resize(BUFFER_BYTES, 0);
        Ok(Self { stream, buffer, filled: 0, tls: None, sealed: Vec::new(), early: Vec::new() })
    }

    pub(crate) fn start_tls(&mut self, client: &Client) -> io::Result<()> {
        if !self.early.is_empty() {
            return Err(io::Error::other("the server sent plain bytes behind its consent to TLS"));
        }
        let (records, filled) =
            client.handshake(&mut self.stream, &mut self.buffer).map_err(doing("TLS handshake"))?;
        self.tls = Some(records);
        self.filled = filled;
        Ok(())
    }

    /// Sends with one write, unless the socket is full.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(records) = &mut self.tls else { return self.stream.write_all(bytes) };
        self.sealed.clear();
        records.seal(bytes, &mut self.sealed)?;
        self.stream.write_all(&self.sealed)
    }

    /// Waits for bytes and gives them to `take`, in pieces and where they lie. After one read from
    /// the socket there may be no piece, if a record is not complete.
    pub(crate) fn receive(
        &mut self,
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let received = self.stream.read(&mut self.buffer[self.filled..])?;
        if received == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let Some(records) = &mut self.tls else { return take(&self.buffer[..received]) };
        let end = self.filled + received;
        let opened = records.open(&mut self.buffer[..end], take)?;
        self.buffer.copy_within(opened..end, 0);
        self.filled = end - opened;
        Ok(())
    }

    /// Waits for so many bytes.
    pub(crate) fn exact(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.early.len() < count {
            let mut early = std::mem::take(&mut self.early);
            let received = self.receive(|bytes| {
                early.extend_from_slice(bytes);
                Ok(())
            });
            self.early = early;
            received?;
        }
        let rest = self.early.split_off(count);
        Ok(std::mem::replace(&mut self.early, rest))
    }

    /// Whether nothing was received that nobody asked for.
    pub(crate) fn is_quiet(&self) -> bool {
        self.early.is_empty()
    }

    /// Waits until the server has hung up, and returns the buffer.
    pub(crate) fn drain(mut self) -> io::Result<Vec<u8>> {
        loop {
            match self.receive(|_| Err(io::Error::other("the server sent data after its end"))) {
                Ok(()) => {}
                // GnuTLS resets the connection if it finds no close_notify.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
                    ) =>
                {
                    return Ok(self.buffer);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives the buffer away, and keeps the connection. Nothing can be received any more.
    pub(crate) fn take_buffer(&mut self) -> Vec<u8> {
        self.sealed = Vec::new();
        std::mem::take(&mut self.buffer)
    }
}
