//! Passphrases, and the cipher of encrypted snapshots. Format section 10.
//!
//! The scheme keeps contents secret from those who have no passphrase. It does not keep anything
//! whole: sizes, holes and the index are in the clear, and nothing says whether they are as they
//! were written. A manifest does that.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fmt;
use std::num::NonZeroU32;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::pbkdf2;
use zeroize::Zeroizing;

use crate::snapshot::decode::Encryptor;
use crate::snapshot::error::Damage;
use crate::snapshot::format::header::Encryption;

/// Fewest rounds of key derivation that are accepted, as by upstream. Format section 15.
pub const ITERATIONS_MIN: u32 = 100_000;

/// Most rounds of key derivation that are accepted: some seconds of one core, where the field of
/// the file could ask for half an hour. Format section 15.
pub const ITERATIONS_MAX: u32 = 10_000_000;

/// Rounds that writers use, upstream's tools among them.
pub const ITERATIONS_DEFAULT: u32 = 600_000;

/// Bytes that encryption adds to a block: the tag behind the ciphertext.
pub const TAG_BYTES: usize = 16;

const KEY_BYTES: usize = 32;

/// What somebody has to know to read a snapshot. Wiped from memory when it is dropped, and never
/// shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Passphrase(Zeroizing<Vec<u8>>);

impl Passphrase {
    /// `None` if it is empty, which is a mistake and no secret. Hexz takes the bytes as they are:
    /// UTF-8, without normalisation.
    #[must_use]
    pub fn new(bytes: Zeroizing<Vec<u8>>) -> Option<Self> {
        (!bytes.is_empty()).then_some(Self(bytes))
    }

    /// Whether it is UTF-8. Upstream's tools take no other.
    #[must_use]
    pub fn is_utf8(&self) -> bool {
        std::str::from_utf8(&self.0).is_ok()
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(…)")
    }
}

/// A header asks for too few rounds of key derivation to be safe, or for too many to be meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the header asks for {0} iterations of key derivation, and {ITERATIONS_MIN} to \
     {ITERATIONS_MAX} are accepted"
)]
pub struct IterationsError(u32);

/// AES-256-GCM with the key of one snapshot. The key is wiped when this is dropped.
///
/// The nonce is the number of the block, so a key must never encrypt two blocks of one number:
/// each file has a salt, and so a key, of its own.
pub struct BlockCipher(LessSafeKey);

impl BlockCipher {
    /// Derives the key from a passphrase: PBKDF2-HMAC-SHA256. Takes about 0.1 s of a core for
    /// [`ITERATIONS_DEFAULT`].
    ///
    /// # Errors
    ///
    /// [`IterationsError`] if the number of rounds lies outside of [`ITERATIONS_MIN`] to
    /// [`ITERATIONS_MAX`].
    pub fn derive(
        passphrase: &Passphrase,
        encryption: &Encryption,
    ) -> Result<Self, IterationsError> {
        let Encryption { salt, iterations } = *encryption;
        let refused = IterationsError(iterations);
        let accepted = (ITERATIONS_MIN..=ITERATIONS_MAX).contains(&iterations);
        let iterations = NonZeroU32::new(iterations).filter(|_| accepted).ok_or(refused)?;
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        let algorithm = pbkdf2::PBKDF2_HMAC_SHA256;
        pbkdf2::derive(algorithm, iterations, &salt, &passphrase.0, key.as_mut_slice());
        // The length is right, which is all that can be wrong with a key.
        let key = UnboundKey::new(&AES_256_GCM, key.as_slice()).map_err(|_| refused)?;
        Ok(Self(LessSafeKey::new(key)))
    }

    /// Encrypts the block with this number in place, and adds [`TAG_BYTES`] to it.
    ///
    /// # Errors
    ///
    /// If the block is longer than the cipher takes: 64 GiB.
    pub fn encrypt(&self, block_number: u64, block: &mut Vec<u8>) -> Result<(), Damage> {
        self.0
            .seal_in_place_append_tag(nonce(block_number), Aad::empty(), block)
            .map_err(|_| Damage::Encryption)
    }
}

impl Encryptor for BlockCipher {
    fn decrypt(&self, block_number: u64, mut stored: Vec<u8>) -> Result<Vec<u8>, Damage> {
        let opened = self.0.open_in_place(nonce(block_number), Aad::empty(), &mut stored);
        let plain_bytes = opened.map_err(|_| Damage::Decryption)?.len();
        stored.truncate(plain_bytes);
        Ok(stored)
    }
}

impl fmt::Debug for BlockCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlockCipher(…)")
    }
}

/// Four zero bytes and the number of the block, big-endian.
fn nonce(block_number: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    if let Some(number) = nonce.last_chunk_mut() {
        *number = block_number.to_be_bytes();
    }
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::new(Zeroizing::new(text.as_bytes().to_vec())).unwrap()
    }

    fn cipher(text: &str, iterations: u32) -> Result<BlockCipher, IterationsError> {
        BlockCipher::derive(&passphrase(text), &Encryption { salt: [7; 16], iterations })
    }

    #[test]
    fn a_block_is_read_with_its_own_number_and_passphrase_only() {
        let right = cipher("secret", ITERATIONS_MIN).unwrap();
        let mut stored = b"block".to_vec();
        right.encrypt(258, &mut stored).unwrap();
        assert_eq!(stored.len(), 5 + TAG_BYTES);
        assert_eq!(right.decrypt(258, stored.clone()).unwrap(), b"block");
        assert_eq!(right.decrypt(257, stored.clone()), Err(Damage::Decryption));
        let wrong = cipher("Secret", ITERATIONS_MIN).unwrap();
        assert_eq!(wrong.decrypt(258, stored.clone()), Err(Damage::Decryption));
        let other_rounds = cipher("secret", ITERATIONS_MIN + 1).unwrap();
        assert_eq!(other_rounds.decrypt(258, stored.clone()), Err(Damage::Decryption));
        for cut in 0..stored.len() {
            assert_eq!(right.decrypt(258, stored[..cut].to_vec()), Err(Damage::Decryption));
        }
    }

    #[test]
    fn no_number_in_a_file_decides_how_long_a_key_takes() {
        for iterations in [0, 1, ITERATIONS_MIN - 1, ITERATIONS_MAX + 1, u32::MAX] {
            assert!(cipher("secret", iterations).is_err(), "{iterations}");
        }
    }

    #[test]
    fn nothing_shows_a_secret() {
        let (secret, cipher) = (passphrase("hunter2"), cipher("hunter2", ITERATIONS_MIN).unwrap());
        assert_eq!(format!("{secret:?} {cipher:?}"), "Passphrase(…) BlockCipher(…)");
        assert_eq!(Passphrase::new(Zeroizing::new(Vec::new())), None);
    }
}
