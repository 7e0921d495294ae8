//! A client with wire code of its own, which sends what no polite client would.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Nothing takes this long. A test that waits longer has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const ACK: u32 = 1;
pub(crate) const SERVER: u32 = 2;
pub(crate) const INFO: u32 = 3;
pub(crate) const META_CONTEXT: u32 = 4;
pub(crate) const ERR_UNSUP: u32 = 0x8000_0001;
pub(crate) const ERR_POLICY: u32 = 0x8000_0002;
pub(crate) const ERR_INVALID: u32 = 0x8000_0003;
pub(crate) const ERR_TLS_REQD: u32 = 0x8000_0005;
pub(crate) const ERR_UNKNOWN: u32 = 0x8000_0006;
pub(crate) const ERR_SHUTDOWN: u32 = 0x8000_0007;
pub(crate) const ERR_TOO_BIG: u32 = 0x8000_0009;
pub(crate) const ERR_EXT_HEADER_REQD: u32 = 0x8000_000a;

/// Over TCP, or whatever is made of it.
pub(crate) struct Client<S = TcpStream> {
    pub(crate) stream: S,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    pub(crate) async fn receive(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let received = timeout(PATIENCE, self.stream.read_exact(&mut bytes));
        received.await.expect("the server says nothing").expect("the server hung up");
        bytes
    }

    async fn receive_u32(&mut self) -> u32 {
        u32::from_be_bytes(self.receive(4).await.try_into().unwrap())
    }

    async fn receive_u64(&mut self) -> u64 {
        u64::from_be_bytes(self.receive(8).await.try_into().unwrap())
    }

    /// Everything until the server closes its side.
    pub(crate) async fn receive_all(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let read = timeout(PATIENCE, self.stream.read_to_end(&mut rest)).await;
        let _ = read.expect("the server does not hang up");
        rest
    }

    /// Nothing more comes: the server closed its side.
    pub(crate) async fn expect_end(&mut self) {
        let mut rest = Vec::new();
        let read = timeout(PATIENCE, self.stream.read_to_end(&mut rest)).await;
        let read = read.expect("the server does not hang up");
        // A server that is sent more than it reads resets the connection.
        assert!(read.is_ok() || rest.is_empty());
        assert_eq!(rest, b"", "more came than was expected");
    }

    pub(crate) async fn greet(&mut self, flags: u32) {
        assert_eq!(self.receive(18).await, b"NBDMAGICIHAVEOPT\0\x03");
        self.send(&flags.to_be_bytes()).await;
    }

    pub(crate) async fn send_option(&mut self, code: u32, payload: &[u8]) {
        self.send(&option(code, payload)).await;
    }

    /// One reply to an option: code and payload.
    pub(crate) async fn option_reply(&mut self, option: u32) -> (u32, Vec<u8>) {
        assert_eq!(self.receive_u64().await, 0x3_e889_0455_65a9);
        assert_eq!(self.receive_u32().await, option, "a reply to another option");
        let code = self.receive_u32().await;
        let length = self.receive_u32().await as usize;
        (code, self.receive(length).await)
    }

    /// Sends an option and takes all replies: the payloads before the last, and the last code.
    pub(crate) async fn option(&mut self, code: u32, payload: &[u8]) -> (Vec<Vec<u8>>, u32) {
        self.send_option(code, payload).await;
        let mut payloads = Vec::new();
        loop {
            let (reply, payload) = self.option_reply(code).await;
            match reply {
                SERVER | INFO | META_CONTEXT => payloads.push(payload),
                last => {
                    if last != ACK {
                        assert!(payload.len() <= 4096);
                        assert!(!payload.is_empty(), "an error without a sentence for people");
                        String::from_utf8(payload).unwrap();
                    }
                    return (payloads, last);
                }
            }
        }
    }

    /// Enters transmission. Size and flags of the export.
    pub(crate) async fn go(&mut self, export: &str) -> (u64, u16) {
        let (infos, last) = self.option(7, &query(export, &[])).await;
        assert_eq!((infos.len(), last), (1, ACK), "{export:?}");
        assert_eq!(infos[0][..2], [0, 0]);
        let size = u64::from_be_bytes(infos[0][2..10].try_into().unwrap());
        (size, u16::from_be_bytes(infos[0][10..].try_into().unwrap()))
    }

    pub(crate) async fn request(
        &mut self,
        flags: u16,
        command: u16,
        cookie: u64,
        offset: u64,
        length: u32,
    ) {
        self.send(&request(flags, command, cookie, offset, length)).await;
    }

    /// One simple reply: error, cookie, and `length` bytes if there is no error.
    pub(crate) async fn reply(&mut self, length: usize) -> (u32, u64, Vec<u8>) {
        assert_eq!(self.receive_u32().await, 0x6744_6698);
        let error = self.receive_u32().await;
        let cookie = self.receive_u64().await;
        let data = if error == 0 { self.receive(length).await } else { Vec::new() };
        (error, cookie, data)
    }

    /// A read that must succeed.
    pub(crate) async fn read(&mut self, offset: u64, length: u32) -> Vec<u8> {
        self.request(0, 0, offset, offset, length).await;
        let (error, cookie, data) = self.reply(length as usize).await;
        assert_eq!((error, cookie), (0, offset));
        data
    }
}

pub(crate) fn option(code: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [b"IHAVEOPT", &code.to_be_bytes()[..], &length, payload].concat()
}

/// Payload of INFO and GO.
pub(crate) fn query(name: &str, facts: &[u16]) -> Vec<u8> {
    let mut payload = (name.len() as u32).to_be_bytes().to_vec();
    payload.extend_from_slice(name.as_bytes());
    payload.extend_from_slice(&(facts.len() as u16).to_be_bytes());
    payload.extend(facts.iter().flat_map(|fact| fact.to_be_bytes()));
    payload
}

pub(crate) fn request(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&command.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes
}
