//! The header: the first 4096 bytes of a snapshot. Format sections 3 and 4.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::snapshot::format::fields::FieldWriter;
use crate::snapshot::format::fields::Fields;
use crate::snapshot::format::{FormatError, HEADER_BYTES};

/// First four bytes of every snapshot.
pub const MAGIC: [u8; 4] = *b"HEXZ";

/// The only format version there is, whatever the layout.
pub const VERSION: u32 = 1;

/// Smallest file: header area and a master index without pages. Format section 4.
pub const FILE_BYTES_MIN: u64 = HEADER_BYTES + MASTER_INDEX_BYTES_MIN;

const MASTER_INDEX_BYTES_MIN: u64 = 32;

/// Most parents that fit into a header: each takes a length and at least one byte.
const PARENTS_THAT_FIT: u64 = 509;

/// Signatures have one length only. Format section 11.
const SIGNATURE_BYTES: u64 = 64;

/// How blocks are compressed. There is no uncompressed block. Format section 9.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// LZ4 block format behind a u32 length.
    Lz4,
    /// One Zstandard frame per block.
    Zstd,
}

impl Compression {
    /// The name that Hexz's own tools use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// The two ways in which header bytes were laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Families A and B: one optional parent, nothing after the flags.
    OptionalParent,
    /// Families C and D: a list of parents, optional chunking parameters after the flags.
    ParentList,
}

/// A range of file bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Span {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

impl Span {
    /// First byte after the span. Spans are checked against the file length when they are read,
    /// so this does not overflow for any span of a [`Header`].
    #[must_use]
    pub const fn end(self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

/// Key derivation of an encrypted snapshot. Format section 10.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Encryption {
    /// Salt of PBKDF2-HMAC-SHA256.
    pub salt: [u8; 16],
    /// Rounds of PBKDF2-HMAC-SHA256.
    pub iterations: u32,
}

/// Parameters of content-defined chunking. Informative. Format section 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChunkingParameters {
    /// Binary logarithm of the average chunk size in bytes.
    pub average_log2: u32,
    /// Smallest chunk in bytes.
    pub minimum_bytes: u32,
    /// Largest chunk in bytes.
    pub maximum_bytes: u32,
}

/// A decoded header. Format section 3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// How the bytes were laid out.
    pub layout: Layout,
    /// Target block size in bytes. Informative: never used for addressing.
    pub block_bytes: u32,
    /// Where the master index begins.
    pub index_offset: u64,
    /// Paths of parents as the writer recorded them. Untrusted.
    pub parents: Vec<String>,
    /// Dictionary for Zstandard, if one was trained. A length of 0 means none.
    pub dictionary: Option<Span>,
    /// Free text or JSON, directly after the master index.
    pub metadata: Option<Span>,
    /// Newest Ed25519 signature.
    pub signature: Option<Span>,
    /// Present if blocks are encrypted.
    pub encryption: Option<Encryption>,
    /// How blocks are compressed.
    pub compression: Compression,
    /// True if the main stream has a page.
    pub has_main: bool,
    /// True if the auxiliary stream has a page.
    pub has_auxiliary: bool,
    /// True if blocks were cut by content. False does not mean that all have one size.
    pub variable_blocks: bool,
    /// Only in family D.
    pub chunking: Option<ChunkingParameters>,
}

/// Why the first bytes of a file are not a header that can be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// All zero: the writer did not finish. Format section 2.
    #[error("the header is all zeros: packing was interrupted")]
    Unfinished,
    /// The magic is missing.
    #[error("not a Hexz snapshot: the file does not begin with \"HEXZ\"")]
    Magic,
    /// Not version 1.
    #[error("format version {0} is unknown, only version 1 exists")]
    Version(u32),
    /// Neither layout fits. The error is that of the layout that newer releases write.
    #[error("the header fits no known release")]
    NoLayout(#[source] FormatError),
}

/// All readings of a header that pass every check that needs only the header and the length of
/// the file. One for every real file but an empty one. Format section 4, steps 1 to 3.
///
/// # Errors
///
/// [`HeaderError`] if there is none.
pub fn candidates(area: &[u8], file_bytes: u64) -> Result<Vec<Header>, HeaderError> {
    let mut fields = Fields::new(area, 0);
    let magic = fields.bytes(MAGIC.len(), "magic").map_err(|_| HeaderError::Magic)?;
    if magic != MAGIC {
        let zeros = !area.is_empty() && area.iter().all(|byte| *byte == 0);
        return Err(if zeros { HeaderError::Unfinished } else { HeaderError::Magic });
    }
    let version = fields.u32("format version").map_err(HeaderError::NoLayout)?;
    if version != VERSION {
        return Err(HeaderError::Version(version));
    }
    let list = decode(area, Layout::ParentList, file_bytes);
    let optional = decode(area, Layout::OptionalParent, file_bytes);
    match (list, optional) {
        (Err(error), Err(_)) => Err(HeaderError::NoLayout(error)),
        (list, optional) => Ok(list.into_iter().chain(optional).collect()),
    }
}

/// Decodes a header in one layout.
///
/// ```text
/// 0       4         8            12             20
/// | magic | version | block size | index offset | parents | dictionary offset, length
/// | metadata offset, length | signature offset, length | encryption | compression
/// | has main | has auxiliary | variable blocks | chunking (list layout only) | zeros to 4096
/// ```
///
/// # Errors
///
/// [`FormatError`] if the bytes cannot be a header in this layout.
fn decode(area: &[u8], layout: Layout, file_bytes: u64) -> Result<Header, FormatError> {
    let mut fields = Fields::new(area, 0);
    fields.bytes(8, "magic and version")?;
    let block_bytes = fields.u32("block size")?;
    let index_offset_at = fields.position();
    let index_offset = fields.u64("index offset")?;
    let index = Span { offset: index_offset, length: MASTER_INDEX_BYTES_MIN };
    check_span("master index", index, index_offset_at, file_bytes)?;
    let parents = match layout {
        Layout::OptionalParent => {
            fields.optional("parent", |f| f.string("parent path"))?.into_iter().collect()
        }
        Layout::ParentList => parent_list(&mut fields)?,
    };
    let dictionary = optional_span(&mut fields, "dictionary", file_bytes)?;
    let metadata = optional_span(&mut fields, "metadata", file_bytes)?;
    let signature_at = fields.position();
    let signature = optional_span(&mut fields, "signature", file_bytes)?;
    if signature.is_some_and(|span| span.length != SIGNATURE_BYTES || span.offset < index.end()) {
        return Err(FormatError::Invalid { what: "signature", offset: signature_at });
    }
    let encryption = fields.optional("encryption", |f| {
        Ok(Encryption { salt: f.salt("encryption salt")?, iterations: f.u32("KDF iterations")? })
    })?;
    let compression_at = fields.position();
    let compression = match fields.u32("compression")? {
        0 => Compression::Lz4,
        1 => Compression::Zstd,
        _ => return Err(FormatError::Invalid { what: "compression", offset: compression_at }),
    };
    let has_main = fields.bool("main stream flag")?;
    let has_auxiliary = fields.bool("auxiliary stream flag")?;
    let variable_blocks = fields.bool("variable blocks flag")?;
    let chunking = match layout {
        Layout::OptionalParent => None,
        Layout::ParentList => chunking(&mut fields)?,
    };
    if fields.rest().iter().any(|byte| *byte != 0) {
        return Err(FormatError::Invalid { what: "header padding", offset: fields.position() });
    }
    Ok(Header {
        layout,
        block_bytes,
        index_offset,
        parents,
        dictionary,
        metadata,
        signature,
        encryption,
        compression,
        has_main,
        has_auxiliary,
        variable_blocks,
        chunking,
    })
}

fn parent_list(fields: &mut Fields<'_>) -> Result<Vec<String>, FormatError> {
    let offset = fields.position();
    let count = fields.u64("number of parents")?;
    if count > PARENTS_THAT_FIT {
        return Err(FormatError::Invalid { what: "number of parents", offset });
    }
    (0..count).map(|_| fields.string("parent path")).collect()
}

/// Offset and length are separate optionals, but real files have both or neither.
fn optional_span(
    fields: &mut Fields<'_>,
    what: &'static str,
    file_bytes: u64,
) -> Result<Option<Span>, FormatError> {
    let at = fields.position();
    let offset = fields.optional(what, |f| f.u64(what))?;
    let length = fields.optional(what, |f| f.u32(what))?;
    match (offset, length) {
        (None, None) => Ok(None),
        (Some(offset), Some(length)) => {
            let span = Span { offset, length: u64::from(length) };
            check_span(what, span, at, file_bytes)?;
            Ok(Some(span))
        }
        _ => Err(FormatError::Invalid { what, offset: at }),
    }
}

fn check_span(what: &'static str, span: Span, at: u64, file_bytes: u64) -> Result<(), FormatError> {
    let inside = span.offset.checked_add(span.length).is_some_and(|end| end <= file_bytes);
    if span.offset < HEADER_BYTES || !inside {
        return Err(FormatError::Invalid { what, offset: at });
    }
    Ok(())
}

/// When only zeros follow the flags the parameters are simply absent, which reads the same.
fn chunking(fields: &mut Fields<'_>) -> Result<Option<ChunkingParameters>, FormatError> {
    fields.optional("chunking parameters", |f| {
        Ok(ChunkingParameters {
            average_log2: f.u32("average chunk size")?,
            minimum_bytes: f.u32("minimum chunk size")?,
            maximum_bytes: f.u32("maximum chunk size")?,
        })
    })
}

impl Header {
    /// Encodes the header area, zero padded, in its layout. What [`candidates`] has decoded comes
    /// out as it was.
    ///
    /// # Errors
    ///
    /// [`FormatError::Limit`] if it does not fit into 4096 bytes, as with long parent paths.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        let mut writer = FieldWriter::with_capacity(256);
        writer.raw(&MAGIC);
        writer.u32(VERSION);
        writer.u32(self.block_bytes);
        writer.u64(self.index_offset);
        match self.layout {
            Layout::OptionalParent => {
                writer.optional(self.parents.first(), |writer, parent| writer.string(parent));
            }
            Layout::ParentList => {
                writer.u64(self.parents.len() as u64);
                for parent in &self.parents {
                    writer.string(parent);
                }
            }
        }
        for span in [self.dictionary, self.metadata, self.signature] {
            writer.optional(span.map(|span| span.offset), FieldWriter::u64);
            let length = span.map(|span| u32::try_from(span.length)).transpose().map_err(|_| {
                FormatError::Limit {
                    what: "length in the header",
                    offset: 0,
                    value: span.map_or(0, |span| span.length),
                    limit: u64::from(u32::MAX),
                }
            })?;
            writer.optional(length, FieldWriter::u32);
        }
        writer.optional(self.encryption, |writer, encryption| {
            writer.raw(&encryption.salt);
            writer.u32(encryption.iterations);
        });
        writer.u32(match self.compression {
            Compression::Lz4 => 0,
            Compression::Zstd => 1,
        });
        writer.bool(self.has_main);
        writer.bool(self.has_auxiliary);
        writer.bool(self.variable_blocks);
        if self.layout == Layout::ParentList {
            writer.optional(self.chunking, |writer, chunking| {
                writer.u32(chunking.average_log2);
                writer.u32(chunking.minimum_bytes);
                writer.u32(chunking.maximum_bytes);
            });
        }
        let mut area = writer.into_bytes();
        if area.len() as u64 > HEADER_BYTES {
            return Err(FormatError::Limit {
                what: "header",
                offset: 0,
                value: area.len() as u64,
                limit: HEADER_BYTES,
            });
        }
        area.resize(usize::try_from(HEADER_BYTES).unwrap_or(usize::MAX), 0);
        Ok(area)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE_BYTES: u64 = 1 << 20;

    fn header() -> Header {
        Header {
            layout: Layout::ParentList,
            block_bytes: 65536,
            index_offset: 500_000,
            parents: vec!["base.hxz".into()],
            dictionary: Some(Span { offset: 4096, length: 100 }),
            metadata: Some(Span { offset: 600_000, length: 3 }),
            signature: Some(Span { offset: 700_000, length: 64 }),
            encryption: Some(Encryption { salt: [7; 16], iterations: 600_000 }),
            compression: Compression::Zstd,
            has_main: true,
            has_auxiliary: false,
            variable_blocks: true,
            chunking: Some(ChunkingParameters {
                average_log2: 16,
                minimum_bytes: 16384,
                maximum_bytes: 262_144,
            }),
        }
    }

    #[test]
    fn an_encoded_header_has_one_reading_and_it_is_the_same() {
        let area = header().encode().unwrap();
        assert_eq!(area.len(), 4096);
        assert_eq!(candidates(&area, FILE_BYTES).unwrap(), [header()]);
    }

    #[test]
    fn magic_version_and_an_interrupted_pack_have_errors_of_their_own() {
        let good = header().encode().unwrap();
        assert_eq!(candidates(&[0; 4096], FILE_BYTES), Err(HeaderError::Unfinished));
        assert_eq!(candidates(b"QFI\xfb", FILE_BYTES), Err(HeaderError::Magic));
        assert_eq!(candidates(b"", FILE_BYTES), Err(HeaderError::Magic));
        for version in [0, 2, u32::MAX] {
            let mut area = good.clone();
            area[4..8].copy_from_slice(&version.to_le_bytes());
            assert_eq!(candidates(&area, FILE_BYTES), Err(HeaderError::Version(version)));
        }
    }

    #[test]
    fn every_range_lies_inside_the_file_and_above_the_header() {
        for change in [
            |h: &mut Header| h.index_offset = FILE_BYTES - 31,
            |h: &mut Header| h.index_offset = 4095,
            |h: &mut Header| h.index_offset = u64::MAX,
            |h: &mut Header| h.dictionary = Some(Span { offset: 0, length: 1 }),
            |h: &mut Header| h.dictionary = Some(Span { offset: u64::MAX, length: 1 }),
            |h: &mut Header| h.metadata = Some(Span { offset: FILE_BYTES, length: 1 }),
            |h: &mut Header| h.signature = Some(Span { offset: 700_000, length: 63 }),
            |h: &mut Header| h.signature = Some(Span { offset: 499_999, length: 64 }),
        ] {
            let mut header = header();
            change(&mut header);
            let area = header.encode().unwrap();
            assert!(
                matches!(candidates(&area, FILE_BYTES), Err(HeaderError::NoLayout(_))),
                "{header:?}"
            );
        }
    }

    #[test]
    fn a_stray_byte_in_the_padding_is_refused() {
        let mut area = header().encode().unwrap();
        area[4095] = 1;
        assert!(matches!(candidates(&area, FILE_BYTES), Err(HeaderError::NoLayout(_))));
    }

    #[test]
    fn a_header_that_does_not_fit_is_not_written_over_the_blocks() {
        let mut header = header();
        header.parents = vec!["x".repeat(4090)];
        assert!(matches!(header.encode(), Err(FormatError::Limit { what: "header", .. })));
    }
}
