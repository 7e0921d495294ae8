//! What everything of a snapshot adds up to.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fmt;
use std::str::FromStr;

use crate::snapshot::error::Error;
use crate::snapshot::format::{FormatError, MasterIndex};
use crate::snapshot::manifest::Checked;
use crate::snapshot::manifest::page::Hash;
use crate::snapshot::pieces::each_piece;
use crate::snapshot::signature::header_area;
use crate::snapshot::structure::Structure;

/// Separates roots from every other use of BLAKE3.
const CONTEXT: &str = "hexz-nbd manifest v1 root";

/// Stands before the root in what is signed, so that no signature of something else can be one of a
/// root: a master index signature is one of 32 bytes.
const SIGNED_CONTEXT: &[u8; 31] = b"hexz-nbd manifest v1 signature\0";

/// A hash of everything that decides which bytes a snapshot has.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Root([u8; 32]);

impl Root {
    /// The root that these bytes are.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The message whose signature a manifest holds.
    pub(super) fn signed_message(&self) -> Vec<u8> {
        [&SIGNED_CONTEXT[..], &self.0].concat()
    }
}

/// Lower case hexadecimal.
impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Hex(&self.0).fmt(f)
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Root({self})")
    }
}

/// A root is 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a root is 64 hexadecimal digits")]
pub struct RootError;

impl FromStr for Root {
    type Err = RootError;

    fn from_str(text: &str) -> Result<Self, RootError> {
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != 32 || !rest.is_empty() {
            return Err(RootError);
        }
        let mut root = [0; 32];
        for (byte, [high, low]) in root.iter_mut().zip(pairs) {
            let digit = |digit: &u8| char::from(*digit).to_digit(16);
            let value = digit(high).zip(digit(low)).map(|(high, low)| high << 4 | low);
            *byte = value.and_then(|value| u8::try_from(value).ok()).ok_or(RootError)?;
        }
        Ok(Self(root))
    }
}

/// Bytes in lower case hexadecimal.
pub(super) struct Hex<'a>(pub(super) &'a [u8; 32]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a snapshot brings to its root, beside its pages.
pub(super) struct Snapshot {
    /// Has been given everything up to the tail.
    hasher: blake3::Hasher,
    dictionary: Vec<u8>,
    metadata: Vec<u8>,
}

impl Snapshot {
    /// Reads and hashes: length of the file, header area, dictionary, and everything from the
    /// master index to the end of the file.
    ///
    /// The structure was decoded from bytes that are read again here, or are encoded from it, so
    /// that what is hashed is what is used. Dictionary and metadata are handed on for the same
    /// reason.
    ///
    /// `None` if the header in the file is no longer the one by which it was recognised.
    pub(super) fn read(structure: &Structure) -> Result<Option<Self>, Error> {
        let storage = structure.storage();
        let Some(header) = header_area(structure)? else {
            return Ok(None);
        };
        let dictionary = structure.dictionary()?;
        let metadata = structure.metadata()?;
        let index = MasterIndex::encode(structure.index());
        let (file_bytes, tail_at) = (structure.file_bytes(), structure.header().index_offset);
        // Metadata, if there is any, begins where the index ends. Format section 2.
        let rest_at = tail_at
            .checked_add(index.len() as u64)
            .and_then(|at| at.checked_add(metadata.len() as u64))
            .filter(|at| *at <= file_bytes);
        let tail_bytes = file_bytes.checked_sub(tail_at);
        let (Some(rest_at), Some(tail_bytes)) = (rest_at, tail_bytes) else {
            let what = "master index";
            let kind = FormatError::Truncated { what, offset: tail_at };
            return Err(structure.error(kind.into()));
        };

        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(&file_bytes.to_le_bytes());
        hasher.update(&header);
        hasher.update(&(dictionary.len() as u64).to_le_bytes());
        hasher.update(&dictionary);
        hasher.update(&tail_bytes.to_le_bytes());
        hasher.update(&index);
        hasher.update(&metadata);
        each_piece(storage, "end of the file", rest_at..file_bytes, |piece| {
            hasher.update(piece);
        })
        .map_err(|kind| structure.error(kind))?;
        Ok(Some(Self { hasher, dictionary, metadata }))
    }

    pub(super) fn metadata(&self) -> &[u8] {
        &self.metadata
    }

    pub(super) fn into_checked(self) -> Checked {
        Checked { dictionary: self.dictionary, metadata: self.metadata }
    }
}

/// The root of a snapshot with these hashes of its pages, main ones first, and these parents.
pub(super) fn root(
    snapshot: &Snapshot,
    own_hashes: bool,
    leaves: &[Hash],
    parent_roots: &[Root],
) -> Root {
    let mut hasher = snapshot.hasher.clone();
    hasher.update(&[u8::from(own_hashes)]);
    hasher.update(&(leaves.len() as u64).to_le_bytes());
    hasher.update(leaves.as_flattened());
    hasher.update(&(parent_roots.len() as u64).to_le_bytes());
    for Root(parent) in parent_roots {
        hasher.update(parent);
    }
    Root(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_read_as_it_is_shown() {
        let root = Root(std::array::from_fn(|at| u8::try_from(at * 7 + 3).unwrap()));
        assert_eq!(root.to_string().parse(), Ok(root));
        assert_eq!(root.to_string().to_uppercase().parse(), Ok(root));
        let shown = root.to_string();
        for wrong in ["", "00", &shown[1..], &format!("{shown}0"), &shown.replace('a', "g")] {
            assert_eq!(wrong.parse::<Root>(), Err(RootError), "{wrong}");
        }
    }

    #[test]
    fn a_root_cannot_be_signed_as_a_master_index() {
        let message = Root([7; 32]).signed_message();
        assert_eq!(message.len(), 63);
        assert_eq!(&message[..31], b"hexz-nbd manifest v1 signature\0");
    }
}
