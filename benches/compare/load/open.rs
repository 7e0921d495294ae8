//! Negotiation: from the greeting to transmission, in as few packets as the protocol allows.

use std::io;

use crate::link::Link;
use crate::tls::Client;
use crate::{Target, doing, wire};

/// A target that connections can be opened to.
pub(crate) struct Opener<'a> {
    target: &'a Target,
    tls: Option<Client>,
}

impl<'a> Opener<'a> {
    pub(crate) fn new(target: &'a Target) -> io::Result<Self> {
        let tls = target
            .tls
            .as_deref()
            .map(|directory| Client::new(directory, &target.server_name))
            .transpose()?;
        Ok(Self { target, tls })
    }

    pub(crate) fn structured(&self) -> bool {
        self.target.structured
    }

    /// A connection where requests may follow, and the size of the export.
    pub(crate) fn open(&self, buffer: Vec<u8>) -> io::Result<(Link, u64)> {
        let address = self.target.address;
        let link =
            Link::connect(address, buffer).map_err(doing(format_args!("connect to {address}")))?;
        self.negotiate(link).map_err(doing(format_args!("negotiate with {address}")))
    }

    fn negotiate(&self, mut link: Link) -> io::Result<(Link, u64)> {
        let greeting = link.exact(18)?;
        if !greeting.starts_with(wire::GREETING) {
            return Err(io::Error::other("no NBD server greets like this"));
        }
        let mut out = wire::FLAGS.to_be_bytes().to_vec();
        if let Some(client) = &self.tls {
            wire::option(&mut out, wire::OPTION_STARTTLS, &[]);
            link.send(&out)?;
            out.clear();
            answer(&mut link, wire::OPTION_STARTTLS)?;
            link.start_tls(client)?;
        }
        if self.target.structured {
            wire::option(&mut out, wire::OPTION_STRUCTURED, &[]);
        }
        let name = self.target.export.as_bytes();
        let mut payload = (name.len() as u32).to_be_bytes().to_vec();
        payload.extend_from_slice(name);
        payload.extend_from_slice(&[0; 2]);
        wire::option(&mut out, wire::OPTION_GO, &payload);
        link.send(&out)?;
        if self.target.structured {
            answer(&mut link, wire::OPTION_STRUCTURED)?;
        }
        let size = answer(&mut link, wire::OPTION_GO)?;
        if !link.is_quiet() {
            return Err(io::Error::other("the server sent more than it was asked for"));
        }
        size.map(|size| (link, size)).ok_or_else(|| io::Error::other("GO without a size"))
    }
}

/// Waits until an option is acknowledged. The size of the export, if it was told.
fn answer(link: &mut Link, option: u32) -> io::Result<Option<u64>> {
    let mut size = None;
    loop {
        let header = link.exact(20)?;
        if wire::be64(&header, 0) != wire::OPTION_REPLY_MAGIC || wire::be32(&header, 8) != option {
            return Err(io::Error::other("an answer to another option"));
        }
        let payload = link.exact(wire::be32(&header, 16).min(1 << 20) as usize)?;
        match wire::be32(&header, 12) {
            wire::REPLY_ACK => return Ok(size),
            wire::REPLY_INFO
                if payload.len() == 12 && wire::be16(&payload, 0) == wire::INFO_EXPORT =>
            {
                size = Some(wire::be64(&payload, 2));
            }
            code if code & wire::REPLY_ERROR != 0 => {
                return Err(io::Error::other(format!(
                    "option {option} is refused with {code:#x}: {}",
                    String::from_utf8_lossy(&payload)
                )));
            }
            _ => {}
        }
    }
}
