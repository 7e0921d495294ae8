//! A client's end of a stream, which cuts what it sends wherever it likes.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};

use crate::simulation::random::Random;

/// How what is sent is cut.
#[derive(Clone, Copy)]
pub(crate) enum Pace {
    /// In packets of any size.
    Any,
    /// Byte by byte, with pauses.
    Slow,
}

pub(crate) struct Sender {
    stream: WriteHalf<DuplexStream>,
    pace: Pace,
}

impl Sender {
    pub(crate) fn new(stream: WriteHalf<DuplexStream>, pace: Pace) -> Self {
        Self { stream, pace }
    }

    /// False if the server takes no more.
    pub(crate) async fn send(&mut self, mut bytes: &[u8], random: &mut Random) -> bool {
        while !bytes.is_empty() {
            let most = match self.pace {
                Pace::Slow => 1,
                Pace::Any => *random.pick(&[1, 5, 28, 100, 1000, usize::MAX]),
            };
            let (packet, rest) = bytes.split_at(most.min(bytes.len()));
            bytes = rest;
            if self.stream.write_all(packet).await.is_err() {
                return false;
            }
            if random.one_in(4) {
                tokio::task::yield_now().await;
            }
        }
        true
    }

    /// Says that no more will come.
    pub(crate) async fn end(&mut self) {
        // The server may be gone already.
        let _ = self.stream.shutdown().await;
    }
}

pub(crate) struct Receiver {
    stream: ReadHalf<DuplexStream>,
    pace: Pace,
}

impl Receiver {
    pub(crate) fn new(stream: ReadHalf<DuplexStream>, pace: Pace) -> Self {
        Self { stream, pace }
    }

    /// `None` if the server hung up.
    pub(crate) async fn receive(&mut self, count: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; count];
        if let Pace::Slow = self.pace {
            tokio::task::yield_now().await;
        }
        self.stream.read_exact(&mut bytes).await.ok()?;
        Some(bytes)
    }

    /// A big-endian number of so many bytes.
    pub(crate) async fn number(&mut self, bytes: usize) -> Option<u64> {
        let bytes = self.receive(bytes).await?;
        Some(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// Everything until the server hangs up.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let _ = self.stream.read_to_end(&mut rest).await;
        rest
    }
}
