//! Ed25519: keys, strict verification, and the signature of the master index. Format section 11.
//!
//! What Hexz signs is the master index and what lies behind it. Header, dictionary, index pages,
//! blocks and parents can be replaced under such a signature, so nothing here says more than "the
//! master index signature is valid". Everything that is served is covered by a
//! [`Manifest`](crate::snapshot::manifest::Manifest).
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fmt;

use aws_lc_rs::digest::{Context, Digest, SHA256};
use aws_lc_rs::rand;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use zeroize::Zeroizing;

use crate::snapshot::error::Error;
use crate::snapshot::format::FormatError;
use crate::snapshot::format::header::{Header, Span, candidates};
use crate::snapshot::format::{HEADER_BYTES, MasterIndex};
use crate::snapshot::pieces::each_piece;
use crate::snapshot::structure::{Structure, read};

/// Length of a public key and of a seed, in bytes.
pub const KEY_BYTES: usize = 32;

/// Length of a signature, in bytes.
pub const SIGNATURE_BYTES: usize = 64;

/// A public key, as upstream's `public.key` holds it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VerifyKey([u8; KEY_BYTES]);

/// Why bytes are not a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A key file holds 32 bytes and nothing else.
    #[error("a key is 32 raw bytes, these are {0}")]
    Length(usize),
    /// A point of small order: under such a key some signatures hold for every second message.
    #[error("the public key is one under which signatures can be forged")]
    SmallOrder,
    /// The library refuses the seed.
    #[error("the private key cannot be used")]
    Unusable,
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

impl VerifyKey {
    /// The key that these bytes encode.
    ///
    /// # Errors
    ///
    /// [`KeyError`] if they are not 32, or encode a point of small order.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        let key = bytes.try_into().map_err(|_| KeyError::Length(bytes.len()))?;
        if is_of_small_order(&key) { Err(KeyError::SmallOrder) } else { Ok(Self(key)) }
    }

    /// The key as it stands in its file.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// Whether the signature of the message is one by this key, and the only one that there can be
    /// for its R: what other libraries call `verify_strict`.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8; SIGNATURE_BYTES]) -> bool {
        let r_is_sound = signature.first_chunk().is_some_and(|r| !is_of_small_order(r));
        r_is_sound && UnparsedPublicKey::new(&ED25519, &self.0).verify(message, signature).is_ok()
    }
}

/// Lower case hexadecimal.
impl fmt::Display for VerifyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for VerifyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyKey({self})")
    }
}

/// The y coordinates of the points whose order divides 8, little-endian, and the two values that
/// are 0 and 1 modulo the prime without being below it. With either sign of x, which is the highest
/// bit, these are all 32 bytes that a decoder may take for such a point. RFC 8032, section 5.1;
/// computed as the multiples of L times a point.
const SMALL_ORDER_Y: [[u8; 32]; 7] = [
    ends([0x00, 0x00], [0x00, 0x00]),
    ends([0x01, 0x00], [0x00, 0x00]),
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98,
        0xf0, 0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53,
        0xfc, 0x05,
    ],
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67,
        0x0f, 0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac,
        0x03, 0x7a,
    ],
    ends([0xec, 0xff], [0xff, 0x7f]),
    ends([0xed, 0xff], [0xff, 0x7f]),
    ends([0xee, 0xff], [0xff, 0x7f]),
];

/// 32 bytes that are all like the second one but for the first and the last.
const fn ends([first, second]: [u8; 2], [_, last]: [u8; 2]) -> [u8; 32] {
    let mut bytes = [second; 32];
    bytes[0] = first;
    bytes[31] = last;
    bytes
}

fn is_of_small_order(point: &[u8; 32]) -> bool {
    let mut y = *point;
    if let Some(last) = y.last_mut() {
        *last &= 0x7f;
    }
    SMALL_ORDER_Y.contains(&y)
}

/// A private key: the seed that upstream's `private.key` holds. Wiped from memory when dropped.
pub struct SigningKey {
    seed: Zeroizing<[u8; KEY_BYTES]>,
    verify_key: VerifyKey,
}

impl SigningKey {
    /// A new key.
    ///
    /// # Errors
    ///
    /// [`KeyError::Random`] if the system has no random numbers.
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = Zeroizing::new([0; KEY_BYTES]);
        rand::fill(seed.as_mut_slice()).map_err(|_| KeyError::Random)?;
        Self::from_seed(seed.as_slice())
    }

    /// The key of this seed. The caller wipes its own copy.
    ///
    /// # Errors
    ///
    /// [`KeyError`] if it is not 32 bytes long.
    pub fn from_seed(seed: &[u8]) -> Result<Self, KeyError> {
        let mut copy = Zeroizing::new([0; KEY_BYTES]);
        if seed.len() != copy.len() {
            return Err(KeyError::Length(seed.len()));
        }
        copy.copy_from_slice(seed);
        let pair = key_pair(&copy)?;
        let verify_key = VerifyKey::from_bytes(pair.public_key().as_ref())?;
        Ok(Self { seed: copy, verify_key })
    }

    /// The seed, as it stands in the key's file.
    #[must_use]
    pub fn seed(&self) -> &[u8; KEY_BYTES] {
        &self.seed
    }

    /// The public key that belongs to it.
    #[must_use]
    pub fn verify_key(&self) -> VerifyKey {
        self.verify_key
    }

    /// Signs a message.
    ///
    /// # Errors
    ///
    /// [`KeyError::Unusable`] if the library refuses.
    pub fn sign(&self, message: &[u8]) -> Result<[u8; SIGNATURE_BYTES], KeyError> {
        let signature = key_pair(&self.seed)?.try_sign(message).map_err(|_| KeyError::Unusable)?;
        signature.as_ref().try_into().map_err(|_| KeyError::Unusable)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let public = &self.verify_key;
        f.debug_struct("SigningKey").field("verify_key", public).finish_non_exhaustive()
    }
}

fn key_pair(seed: &[u8; KEY_BYTES]) -> Result<Ed25519KeyPair, KeyError> {
    Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| KeyError::Unusable)
}

/// Why a master index signature is not valid.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// There is none.
    #[error("the snapshot has no signature")]
    Missing,
    /// No key fits, or what was signed has changed.
    #[error("the master index signature is not valid by any of the keys")]
    NotByTheseKeys,
    /// The file cannot be read.
    #[error(transparent)]
    Snapshot(#[from] Error),
}

/// Finds the key by which the master index signature of a snapshot is valid.
///
/// This says that the holder of the key has signed this master index and this metadata. Pages and
/// blocks may be anybody's.
///
/// # Errors
///
/// [`SignatureError`] if there is no such key, no signature, or the file cannot be read.
pub fn verify_master_index(
    structure: &Structure,
    keys: &[VerifyKey],
) -> Result<VerifyKey, SignatureError> {
    let span = structure.header().signature.ok_or(SignatureError::Missing)?;
    let signature = read(structure.storage(), "signature", span.offset, span.length)
        .map_err(|kind| structure.error(kind))?;
    let signature: [u8; SIGNATURE_BYTES] =
        signature.try_into().map_err(|_| SignatureError::NotByTheseKeys)?;
    let digest = digest_until(structure, span.offset)?;
    let valid = |key: &&VerifyKey| key.verifies(digest.as_ref(), &signature);
    keys.iter().find(valid).copied().ok_or(SignatureError::NotByTheseKeys)
}

/// SHA-256 of the file from the master index to `end`.
///
/// The index is the one that was decoded when the file was recognised, which encodes to what it was
/// decoded from: whoever changes the file in between changes nothing of what is verified.
fn digest_until(structure: &Structure, end: u64) -> Result<Digest, Error> {
    let offset = structure.header().index_offset;
    let index = MasterIndex::encode(structure.index());
    let rest = offset.checked_add(index.len() as u64).filter(|rest| *rest <= end);
    let rest = rest.ok_or_else(|| {
        structure.error(FormatError::Invalid { what: "signature offset", offset: end }.into())
    })?;
    let mut context = Context::new(&SHA256);
    context.update(&index);
    each_piece(structure.storage(), "signed bytes", rest..end, |piece| context.update(piece))
        .map_err(|kind| structure.error(kind))?;
    Ok(context.finish())
}

/// Why a master index is not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The file cannot be read.
    #[error(transparent)]
    Snapshot(#[from] Error),
    /// Its header is not the one by which it was recognised.
    #[error("{0}: the header has changed while the file was read")]
    Changed(String),
}

/// What makes a signed file of one that is not: bytes to append, and the header area to put at the
/// beginning.
#[derive(Debug)]
pub struct MasterIndexSignature {
    /// Goes to the end of the file.
    pub signature: [u8; SIGNATURE_BYTES],
    /// Goes to the beginning of the file.
    pub header_area: Vec<u8>,
}

/// Signs the master index as upstream does: the signature is appended, after older ones, and the
/// header names the new one.
///
/// # Errors
///
/// [`SignError`] if the file cannot be read or the key cannot be used.
pub fn sign_master_index(
    structure: &Structure,
    key: &SigningKey,
) -> Result<MasterIndexSignature, SignError> {
    if header_area(structure)?.is_none() {
        return Err(SignError::Changed(structure.name().to_owned()));
    }
    let end = structure.file_bytes();
    let signature = key.sign(digest_until(structure, end)?.as_ref())?;
    let span = Span { offset: end, length: SIGNATURE_BYTES as u64 };
    let header = Header { signature: Some(span), ..structure.header().clone() };
    let header_area = header.encode().map_err(|error| structure.error(error.into()))?;
    Ok(MasterIndexSignature { signature, header_area })
}

/// The header area as it is in the file now. `None` if it is not the one by which the file was
/// recognised: somebody changes the file.
pub(crate) fn header_area(structure: &Structure) -> Result<Option<Vec<u8>>, Error> {
    let area = read(structure.storage(), "header", 0, HEADER_BYTES)
        .map_err(|kind| structure.error(kind))?;
    let readings = candidates(&area, structure.file_bytes()).unwrap_or_default();
    Ok(readings.contains(structure.header()).then_some(area))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The 14 encodings: each y with either sign of x.
    fn small_order() -> impl Iterator<Item = [u8; 32]> {
        SMALL_ORDER_Y.into_iter().flat_map(|y| {
            let mut other = y;
            other[31] |= 0x80;
            [y, other]
        })
    }

    /// R = identity, S = 0: holds for each message whose hash is a multiple of the order of the
    /// key. Nobody needs a private key for it.
    fn forged() -> [u8; SIGNATURE_BYTES] {
        let mut signature = [0; SIGNATURE_BYTES];
        signature[0] = 1;
        signature
    }

    fn lenient(key: &[u8; 32], message: &[u8], signature: &[u8; SIGNATURE_BYTES]) -> bool {
        UnparsedPublicKey::new(&ED25519, key).verify(message, signature).is_ok()
    }

    #[test]
    fn what_the_library_takes_under_a_key_of_small_order_is_refused() {
        let mut forgeable = 0;
        for key in small_order() {
            let forgery = (0..1000_u32).find(|n| lenient(&key, &n.to_le_bytes(), &forged()));
            forgeable += u32::from(forgery.is_some());
            assert_eq!(VerifyKey::from_bytes(&key), Err(KeyError::SmallOrder), "{key:02x?}");
            let message = forgery.unwrap_or(0).to_le_bytes();
            assert!(!VerifyKey(key).verifies(&message, &forged()), "{key:02x?}");
        }
        // The encodings that are canonical. Of the others it takes none, or some, as the processor
        // has it.
        assert!(forgeable >= 8, "the library refuses them by itself: {forgeable}");
    }

    #[test]
    fn a_signature_holds_for_its_key_and_its_message_alone() {
        let (key, other) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let signature = key.sign(b"message").unwrap();
        assert!(key.verify_key().verifies(b"message", &signature));
        assert!(!key.verify_key().verifies(b"massage", &signature));
        assert!(!other.verify_key().verifies(b"message", &signature));
        for bit in 0..SIGNATURE_BYTES * 8 {
            let mut flipped = signature;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!key.verify_key().verifies(b"message", &flipped), "bit {bit}");
        }
    }

    /// RFC 8032, section 7.1, test 2.
    #[test]
    fn a_seed_makes_the_key_and_the_signature_of_the_standard() {
        let hex = |text: &str| -> Vec<u8> {
            let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
            (0..text.len()).step_by(2).map(byte).collect()
        };
        let seed = hex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb");
        let public = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c";
        let signature = "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
                         085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00";
        let key = SigningKey::from_seed(&seed).unwrap();
        assert_eq!(key.verify_key().to_string(), public);
        assert_eq!(key.sign(&[0x72]).unwrap()[..], hex(signature));
        assert_eq!(key.seed()[..], seed);
    }

    #[test]
    fn a_key_of_another_length_is_refused() {
        for length in [0, 31, 33, 64] {
            let bytes = vec![7; length];
            assert_eq!(VerifyKey::from_bytes(&bytes), Err(KeyError::Length(length)));
            assert_eq!(SigningKey::from_seed(&bytes).unwrap_err(), KeyError::Length(length));
        }
    }

    #[test]
    fn nothing_of_the_seed_is_in_a_debug_output() {
        let key = SigningKey::from_seed(&[0xab; 32]).unwrap();
        let shown = format!("{key:?}");
        assert!(shown.contains(&key.verify_key().to_string()), "{shown}");
        assert!(!shown.contains("abab") && !shown.contains("171, 171"), "{shown}");
    }
}
