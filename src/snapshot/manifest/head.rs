//! The first bytes of a manifest, up to its hashes.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::snapshot::chain::PARENTS_MAX;
use crate::snapshot::format::FormatError;
use crate::snapshot::format::fields::FieldWriter;
use crate::snapshot::format::fields::Fields;
use crate::snapshot::manifest::error::ManifestErrorKind;
use crate::snapshot::manifest::root::Root;

/// First eight bytes, with the version.
pub(super) const MAGIC: [u8; 8] = *b"HXZMAN01";

/// Length without parents, in bytes.
pub(super) const HEAD_BYTES_MIN: u64 = 32 + 32 + 32 + 64;

/// Length with as many parents as there may be, in bytes.
pub(super) const HEAD_BYTES_MAX: u64 = HEAD_BYTES_MIN + PARENTS_MAX as u64 * 32;

/// Everything but the hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    /// Length of the snapshot in bytes.
    pub(super) file_bytes: u64,
    /// Index pages of both streams.
    pub(super) pages: u64,
    /// Whether there are hashes of stored blocks.
    pub(super) own_hashes: bool,
    pub(super) parent_roots: Vec<Root>,
    pub(super) root: Root,
    pub(super) key: [u8; 32],
    pub(super) signature: [u8; 64],
}

impl Head {
    /// Decodes what the file begins with.
    ///
    /// ```text
    /// 0       8            16      24           25        26          32
    /// | magic | file bytes | pages | own hashes | parents | six zeros | roots of parents
    /// | root: 32 | key: 32 | signature: 64 |
    /// ```
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, ManifestErrorKind> {
        let mut fields = Fields::new(bytes, 0);
        if fields.bytes(MAGIC.len(), "magic")? != MAGIC {
            return Err(ManifestErrorKind::Magic);
        }
        let file_bytes = fields.u64("length of the snapshot")?;
        let pages = fields.u64("number of index pages")?;
        let own_hashes = fields.bool("flag of block hashes")?;
        let parents_at = fields.position();
        let parents = usize::from(fields.u8("number of parents")?);
        if parents > PARENTS_MAX {
            let (what, offset) = ("number of parents", parents_at);
            return Err(FormatError::Invalid { what, offset }.into());
        }
        let reserved_at = fields.position();
        if fields.bytes(6, "reserved bytes")? != [0; 6] {
            let (what, offset) = ("reserved bytes", reserved_at);
            return Err(FormatError::Invalid { what, offset }.into());
        }
        let parent_roots = (0..parents)
            .map(|_| fields.hash("root of a parent").map(Root::from_bytes))
            .collect::<Result<_, _>>()?;
        let root = Root::from_bytes(fields.hash("root")?);
        let key = fields.hash("public key")?;
        let signature_at = fields.position();
        let signature = fields.bytes(64, "signature")?.try_into();
        let signature = signature
            .map_err(|_| FormatError::Truncated { what: "signature", offset: signature_at })?;
        Ok(Self { file_bytes, pages, own_hashes, parent_roots, root, key, signature })
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut writer = FieldWriter::default();
        writer.raw(&MAGIC);
        writer.u64(self.file_bytes);
        writer.u64(self.pages);
        writer.bool(self.own_hashes);
        writer.raw(&[u8::try_from(self.parent_roots.len()).unwrap_or(u8::MAX)]);
        writer.raw(&[0; 6]);
        for root in &self.parent_roots {
            writer.raw(root.as_bytes());
        }
        writer.raw(self.root.as_bytes());
        writer.raw(&self.key);
        writer.raw(&self.signature);
        writer.into_bytes()
    }

    /// Length in bytes.
    pub(super) fn bytes(&self) -> u64 {
        head_bytes(self.parent_roots.len())
    }
}

/// Length with so many parents, in bytes.
pub(super) fn head_bytes(parents: usize) -> u64 {
    (parents as u64).saturating_mul(32).saturating_add(HEAD_BYTES_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(parents: u8) -> Head {
        Head {
            file_bytes: 5000,
            pages: 3,
            own_hashes: true,
            parent_roots: (0..parents).map(|n| Root::from_bytes([n; 32])).collect(),
            root: Root::from_bytes([0xaa; 32]),
            key: [0xbb; 32],
            signature: [0xcc; 64],
        }
    }

    #[test]
    fn what_was_written_is_read_and_nothing_shorter() {
        for parents in [0, 1, 16] {
            let bytes = head(parents).encode();
            assert_eq!(bytes.len() as u64, head(parents).bytes());
            assert_eq!(Head::decode(&bytes).unwrap(), head(parents));
            for cut in 0..bytes.len() {
                assert!(Head::decode(&bytes[..cut]).is_err(), "{cut}");
            }
        }
        assert_eq!(HEAD_BYTES_MIN, head(0).bytes());
        assert_eq!(HEAD_BYTES_MAX, head(16).bytes());
    }

    #[test]
    fn what_no_version_writes_is_refused() {
        for (at, value) in [(0, b'h'), (7, b'2'), (24, 2), (25, 17), (25, 255), (26, 1), (31, 1)] {
            let mut bytes = head(1).encode();
            bytes.resize(10_000, 0);
            bytes[at] = value;
            assert!(Head::decode(&bytes).is_err(), "{at}");
        }
    }
}
