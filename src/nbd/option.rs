//! Bytes of an option to what the client wants. Section "Option types".
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use bytes::Buf;

use crate::nbd::BadMagic;
use crate::nbd::limits::NAME_BYTES_MAX;
use crate::nbd::wire::{InfoCode, OPTION_HEADER_BYTES, OPTION_MAGIC, OptionCode, ReplyCode};

/// What comes before the payload of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHeader {
    /// What the client asks for.
    pub code: OptionCode,
    /// Length of the payload that follows, in bytes. Not checked yet.
    pub payload_bytes: u32,
}

impl OptionHeader {
    /// Decodes a header. Source: section "Newstyle negotiation".
    ///
    /// ```text
    /// 0       8        12       16
    /// | magic | option | length |
    /// ```
    ///
    /// # Errors
    ///
    /// [`BadMagic`] if the client does not speak the protocol. The session ends.
    pub fn decode(bytes: &[u8; OPTION_HEADER_BYTES]) -> Result<Self, BadMagic> {
        // The array is as long as the fields together, so taking them cannot fail.
        let mut fields = bytes.as_slice();
        let found = fields.get_u64();
        if found != OPTION_MAGIC {
            return Err(BadMagic { found });
        }
        Ok(Self { code: OptionCode(fields.get_u32()), payload_bytes: fields.get_u32() })
    }
}

/// An option about exports that makes sense. Those about the session itself, `ABORT` and
/// `STARTTLS`, have nothing to decode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientOption<'a> {
    /// Open an export, or end the session if that is not possible.
    ExportName(&'a str),
    /// List the exports.
    List,
    /// Describe an export.
    Info(ExportQuery<'a>),
    /// Open an export.
    Go(ExportQuery<'a>),
    /// Answer requests with structured replies.
    StructuredReply,
    /// Not known here.
    Unknown,
}

/// Which export, and what the client wants to know about it. Section "Option types", `NBD_OPT_INFO`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportQuery<'a> {
    /// The name. Empty for the default export.
    pub name: &'a str,
    /// Big-endian numbers of the wanted facts, two bytes each.
    requests: &'a [u8],
}

impl ExportQuery<'_> {
    /// Whether the client asked for a fact. Unknown ones are passed over, as the document demands.
    #[must_use]
    pub fn wants(&self, fact: InfoCode) -> bool {
        self.requests.chunks_exact(2).any(|request| *request == fact.0.to_be_bytes())
    }
}

/// Why an option is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The code of the reply.
    pub code: ReplyCode,
    /// A sentence for the person at the client.
    pub message: &'static str,
}

const fn malformed(message: &'static str) -> Refusal {
    Refusal { code: ReplyCode::ERR_INVALID, message }
}

/// Decodes the payload of an option that is about exports, all of which is there.
///
/// # Errors
///
/// [`Refusal`] if it is malformed.
pub fn decode(code: OptionCode, payload: &[u8]) -> Result<ClientOption<'_>, Refusal> {
    Ok(match code {
        OptionCode::EXPORT_NAME => ClientOption::ExportName(name(payload)?),
        OptionCode::LIST if payload.is_empty() => ClientOption::List,
        OptionCode::LIST => return Err(malformed("listing exports takes no data")),
        OptionCode::INFO => ClientOption::Info(export_query(payload)?),
        OptionCode::GO => ClientOption::Go(export_query(payload)?),
        OptionCode::STRUCTURED_REPLY if payload.is_empty() => ClientOption::StructuredReply,
        OptionCode::STRUCTURED_REPLY => {
            return Err(malformed("asking for structured replies takes no data"));
        }
        _ => ClientOption::Unknown,
    })
}

/// ```text
/// | length of name: u32 | name | number of requests: u16 | u16 each |
/// ```
fn export_query(payload: &[u8]) -> Result<ExportQuery<'_>, Refusal> {
    const TOO_SHORT: Refusal = malformed("the option is shorter than what it announces");
    let (length, rest) = payload.split_first_chunk().ok_or(TOO_SHORT)?;
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| TOO_SHORT)?;
    let (name_bytes, rest) = rest.split_at_checked(length).ok_or(TOO_SHORT)?;
    let (count, requests) = rest.split_first_chunk().ok_or(TOO_SHORT)?;
    let expected = usize::from(u16::from_be_bytes(*count)).saturating_mul(2);
    if requests.len() < expected {
        return Err(TOO_SHORT);
    }
    if requests.len() > expected {
        return Err(malformed("the option is longer than what it announces"));
    }
    Ok(ExportQuery { name: name(name_bytes)?, requests })
}

/// Section "Conventions": UTF-8, no NUL, at most 4096 bytes.
fn name(bytes: &[u8]) -> Result<&str, Refusal> {
    if bytes.len() > NAME_BYTES_MAX {
        let message = "an export name has at most 4096 bytes";
        return Err(Refusal { code: ReplyCode::ERR_TOO_BIG, message });
    }
    match str::from_utf8(bytes) {
        Ok(name) if !name.contains('\0') => Ok(name),
        _ => Err(malformed("an export name is UTF-8 text without NUL")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &[u8], announced: u32, requests: &[u16], count: u16) -> Vec<u8> {
        let mut payload = announced.to_be_bytes().to_vec();
        payload.extend_from_slice(name);
        payload.extend_from_slice(&count.to_be_bytes());
        payload.extend(requests.iter().flat_map(|request| request.to_be_bytes()));
        payload
    }

    #[test]
    fn a_header_is_magic_option_and_length() {
        let mut bytes = *b"IHAVEOPT\0\0\0\x07\x01\x02\x03\x04";
        let header = OptionHeader::decode(&bytes).unwrap();
        assert_eq!(header, OptionHeader { code: OptionCode::GO, payload_bytes: 0x0102_0304 });
        bytes[7] = b'X';
        assert_eq!(
            OptionHeader::decode(&bytes),
            Err(BadMagic { found: u64::from_be_bytes(*b"IHAVEOPX") })
        );
    }

    #[test]
    fn a_query_names_the_export_and_the_facts() {
        let payload = query(b"disk", 4, &[3, 0x7777], 2);
        let Ok(ClientOption::Go(query)) = decode(OptionCode::GO, &payload) else { panic!() };
        assert_eq!(query.name, "disk");
        assert!(query.wants(InfoCode::BLOCK_SIZE) && !query.wants(InfoCode::NAME));
    }

    /// CVE-2022-26495: a length of 2^32-1 must not wrap.
    #[test]
    fn a_query_that_lies_about_its_lengths_is_malformed() {
        for payload in [
            Vec::new(),
            vec![0; 5],
            query(b"disk", 5, &[], 0),
            query(b"disk", 3, &[], 0),
            query(b"disk", u32::MAX, &[], 0),
            query(b"disk", u32::MAX - 3, &[], 0),
            query(b"disk", 4, &[3], 0),
            query(b"disk", 4, &[3], 2),
            query(b"disk", 4, &[], u16::MAX),
            query(b"\xff", 1, &[], 0),
            query(b"a\0", 2, &[], 0),
        ] {
            for code in [OptionCode::INFO, OptionCode::GO] {
                let refusal = decode(code, &payload).unwrap_err();
                assert_eq!(refusal.code, ReplyCode::ERR_INVALID, "{payload:?}");
            }
        }
    }

    #[test]
    fn names_have_a_longest_length() {
        let longest = vec![b'x'; NAME_BYTES_MAX];
        assert!(decode(OptionCode::EXPORT_NAME, &longest).is_ok());
        let too_long = vec![b'x'; NAME_BYTES_MAX + 1];
        let refusal = decode(OptionCode::EXPORT_NAME, &too_long).unwrap_err();
        assert_eq!(refusal.code, ReplyCode::ERR_TOO_BIG);
    }

    #[test]
    fn a_list_and_structured_replies_take_no_payload() {
        for (code, expected) in [
            (OptionCode::LIST, ClientOption::List),
            (OptionCode::STRUCTURED_REPLY, ClientOption::StructuredReply),
        ] {
            assert_eq!(decode(code, b""), Ok(expected));
            assert_eq!(decode(code, b"x").unwrap_err().code, ReplyCode::ERR_INVALID);
        }
        assert_eq!(decode(OptionCode(99), b"x"), Ok(ClientOption::Unknown));
    }
}
