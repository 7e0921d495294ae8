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
    /// Take requests with extended headers, and answer with them.
    ExtendedHeaders,
    /// List metadata contexts of an export.
    ListMetaContext(ContextQuery<'a>),
    /// Choose metadata contexts of an export, in place of those that were chosen before.
    SetMetaContext(ContextQuery<'a>),
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

/// Which metadata contexts of which export. Section "Option types", `NBD_OPT_LIST_META_CONTEXT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextQuery<'a> {
    /// The name of the export. Empty for the default export.
    pub name: &'a str,
    /// Each with its length before it. Checked when the option was decoded.
    queries: &'a [u8],
}

impl<'a> ContextQuery<'a> {
    /// What was asked for: whole names of contexts, and in lists beginnings of them.
    pub fn queries(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let mut rest = self.queries;
        std::iter::from_fn(move || {
            let query;
            (query, rest) = split_string(rest)?;
            str::from_utf8(query).ok()
        })
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

const fn too_big(message: &'static str) -> Refusal {
    Refusal { code: ReplyCode::ERR_TOO_BIG, message }
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
        OptionCode::EXTENDED_HEADERS if payload.is_empty() => ClientOption::ExtendedHeaders,
        OptionCode::EXTENDED_HEADERS => {
            return Err(malformed("asking for extended headers takes no data"));
        }
        OptionCode::LIST_META_CONTEXT => ClientOption::ListMetaContext(context_query(payload)?),
        OptionCode::SET_META_CONTEXT => ClientOption::SetMetaContext(context_query(payload)?),
        _ => ClientOption::Unknown,
    })
}

/// ```text
/// | length of name: u32 | name | number of requests: u16 | u16 each |
/// ```
fn export_query(payload: &[u8]) -> Result<ExportQuery<'_>, Refusal> {
    let (name_bytes, rest) = split_string(payload).ok_or(TOO_SHORT)?;
    let (count, requests) = rest.split_first_chunk().ok_or(TOO_SHORT)?;
    let expected = usize::from(u16::from_be_bytes(*count)).saturating_mul(2);
    if requests.len() < expected {
        return Err(TOO_SHORT);
    }
    if requests.len() > expected {
        return Err(TOO_LONG);
    }
    Ok(ExportQuery { name: name(name_bytes)?, requests })
}

/// ```text
/// | length of name: u32 | name | number of queries: u32 | length of query: u32 | query | … |
/// ```
fn context_query(payload: &[u8]) -> Result<ContextQuery<'_>, Refusal> {
    let (name_bytes, rest) = split_string(payload).ok_or(TOO_SHORT)?;
    let (count, queries) = rest.split_first_chunk().ok_or(TOO_SHORT)?;
    let mut rest = queries;
    // Each takes bytes of the payload, so there are not more turns than bytes.
    for _ in 0..u32::from_be_bytes(*count) {
        let query;
        (query, rest) = split_string(rest).ok_or(TOO_SHORT)?;
        text(query).map_err(|wrong| match wrong {
            BadText::TooLong => too_big("a query has at most 4096 bytes"),
            BadText::NotText => malformed("a query is UTF-8 text without NUL"),
        })?;
    }
    if !rest.is_empty() {
        return Err(TOO_LONG);
    }
    Ok(ContextQuery { name: name(name_bytes)?, queries })
}

const TOO_SHORT: Refusal = malformed("the option is shorter than what it announces");
const TOO_LONG: Refusal = malformed("the option is longer than what it announces");

/// A string with its length before it, and what follows.
fn split_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)
}

fn name(bytes: &[u8]) -> Result<&str, Refusal> {
    text(bytes).map_err(|wrong| match wrong {
        BadText::TooLong => too_big("an export name has at most 4096 bytes"),
        BadText::NotText => malformed("an export name is UTF-8 text without NUL"),
    })
}

/// What is wrong with a string of the client.
enum BadText {
    TooLong,
    NotText,
}

/// Section "Conventions": UTF-8, no NUL, at most 4096 bytes.
fn text(bytes: &[u8]) -> Result<&str, BadText> {
    if bytes.len() > NAME_BYTES_MAX {
        return Err(BadText::TooLong);
    }
    match str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(BadText::NotText),
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

    fn contexts(name: &[u8], announced: u32, queries: &[&[u8]], count: u32) -> Vec<u8> {
        let mut payload = announced.to_be_bytes().to_vec();
        payload.extend_from_slice(name);
        payload.extend_from_slice(&count.to_be_bytes());
        for query in queries {
            payload.extend_from_slice(&u32::try_from(query.len()).unwrap().to_be_bytes());
            payload.extend_from_slice(query);
        }
        payload
    }

    const CONTEXT_OPTIONS: [OptionCode; 2] =
        [OptionCode::LIST_META_CONTEXT, OptionCode::SET_META_CONTEXT];

    #[test]
    fn a_query_of_contexts_names_the_export_and_the_contexts() {
        for queries in [&[][..], &[&b""[..]], &[b"base:allocation", b"", b"qemu:"]] {
            let count = u32::try_from(queries.len()).unwrap();
            for code in CONTEXT_OPTIONS {
                let payload = contexts(b"disk", 4, queries, count);
                let (ClientOption::ListMetaContext(query) | ClientOption::SetMetaContext(query)) =
                    decode(code, &payload).unwrap()
                else {
                    panic!()
                };
                assert_eq!(query.name, "disk");
                let texts: Vec<&[u8]> = query.queries().map(str::as_bytes).collect();
                assert_eq!(texts, queries);
            }
        }
    }

    /// CVE-2022-26495 again, for the lengths of these options.
    #[test]
    fn a_query_of_contexts_that_lies_about_its_lengths_is_malformed() {
        let mut lying_query = contexts(b"disk", 4, &[b"base:"], 1);
        lying_query[12..16].copy_from_slice(&u32::MAX.to_be_bytes());
        for payload in [
            Vec::new(),
            contexts(b"disk", 5, &[], 0),
            contexts(b"disk", u32::MAX, &[], 0),
            contexts(b"disk", 4, &[], 1),
            contexts(b"disk", 4, &[], u32::MAX),
            contexts(b"disk", 4, &[b"base:"], 0),
            contexts(b"disk", 4, &[b"base:"], 2),
            contexts(b"disk", 4, &[b"\xff"], 1),
            contexts(b"disk", 4, &[b"a\0"], 1),
            contexts(b"\xff", 1, &[], 0),
            lying_query,
        ] {
            for code in CONTEXT_OPTIONS {
                let refusal = decode(code, &payload).unwrap_err();
                assert_eq!(refusal.code, ReplyCode::ERR_INVALID, "{payload:?}");
            }
        }
        let long = [b'x'; NAME_BYTES_MAX + 1];
        for code in CONTEXT_OPTIONS {
            for payload in [contexts(&long, 4097, &[], 0), contexts(b"", 0, &[&long], 1)] {
                assert_eq!(decode(code, &payload).unwrap_err().code, ReplyCode::ERR_TOO_BIG);
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
    fn a_list_and_forms_of_replies_take_no_payload() {
        for (code, expected) in [
            (OptionCode::LIST, ClientOption::List),
            (OptionCode::STRUCTURED_REPLY, ClientOption::StructuredReply),
            (OptionCode::EXTENDED_HEADERS, ClientOption::ExtendedHeaders),
        ] {
            assert_eq!(decode(code, b""), Ok(expected));
            assert_eq!(decode(code, b"x").unwrap_err().code, ReplyCode::ERR_INVALID);
        }
        assert_eq!(decode(OptionCode(99), b"x"), Ok(ClientOption::Unknown));
    }
}
