//! The signature of the master index, as upstream makes it and as we do.

use std::io::{Cursor, Write as _};
use std::sync::Arc;

use bytes::Bytes;
use hexz_common::sign::verify_digest;
use hexz_core::format::header::Header;
use hexz_core::{Archive, ArchiveStream};
use hexz_nbd::snapshot::VerifyKey;
use hexz_nbd::snapshot::format::header::candidates;
use hexz_nbd::snapshot::signature::{SignatureError, verify_master_index};
use sha2::{Digest as _, Sha256};

use crate::support::fixtures::{self, Kind};
use crate::support::signed::{Flipped, Replaced, bytes, key, memory, structure, with_signature};

/// Files that upstream's tools have signed, with their keys.
const SIGNED: [(&str, &str); 3] = [
    ("v020-lz4-sparse-signed.hxz", "v020-signed.pub"),
    ("v082-signed.hxz", "v082-signed.pub"),
    ("v082-signed-twice.hxz", "v082-signed-twice.pub"),
];

fn public(name: &str) -> VerifyKey {
    VerifyKey::from_bytes(&std::fs::read(fixtures::path(name)).unwrap()).unwrap()
}

#[test]
fn what_upstream_signed_is_valid_by_its_key_and_by_no_other() {
    let keys: Vec<VerifyKey> = SIGNED.iter().map(|(_, key)| public(key)).collect();
    for (number, (file, _)) in SIGNED.iter().enumerate() {
        let structure = structure(memory(bytes(file))).unwrap();
        assert_eq!(verify_master_index(&structure, &keys).unwrap(), keys[number], "{file}");
        for (other, key) in keys.iter().enumerate() {
            let result = verify_master_index(&structure, std::slice::from_ref(key));
            assert_eq!(result.is_ok(), keys[number] == *key, "{file}, key {other}");
        }
        let nobody = verify_master_index(&structure, &[]);
        assert!(matches!(nobody, Err(SignatureError::NotByTheseKeys)), "{file}");
    }
    let unsigned = structure(memory(bytes("v082-onebyte.hxz"))).unwrap();
    assert!(matches!(verify_master_index(&unsigned, &keys), Err(SignatureError::Missing)));
}

#[test]
fn a_flipped_bit_of_the_index_the_metadata_or_the_signature_is_noticed() {
    for (file, key) in SIGNED {
        let (bytes, keys) = (bytes(file), [public(key)]);
        let header = structure(memory(bytes.clone())).unwrap();
        let start = header.header().index_offset as usize;
        let end = header.header().signature.unwrap().end() as usize;
        assert_eq!(end, bytes.len());
        for at in start..end {
            for bit in 0..8 {
                let storage = Flipped { bytes: bytes.clone(), at, mask: 1 << bit };
                let valid = structure(Arc::new(storage))
                    .is_ok_and(|structure| verify_master_index(&structure, &keys).is_ok());
                assert!(!valid, "{file}: byte {at}, bit {bit}");
            }
        }
    }
}

/// What was decoded when the file was recognised is what is verified, whatever the file is now.
#[test]
fn an_index_that_was_not_signed_is_not_verified_by_putting_back_the_signed_one() {
    let signed = bytes("v082-signed.hxz");
    let keys = [public("v082-signed.pub")];
    let mut evil = signed.to_vec();
    let index_offset = structure(memory(signed.clone())).unwrap().header().index_offset as usize;
    // The size of the main stream, behind two counts and one page.
    evil[index_offset + 8 + 28 + 8] ^= 1;
    let storage = Replaced::new(evil.into(), signed);
    let structure = structure(Arc::<Replaced>::clone(&storage)).unwrap();
    storage.replace();
    let result = verify_master_index(&structure, &keys);
    assert!(matches!(result, Err(SignatureError::NotByTheseKeys)), "{result:?}");
}

#[test]
fn what_we_sign_is_valid_for_upstream_and_for_us_in_every_family() {
    let public = tempfile::NamedTempFile::new().unwrap();
    public.as_file().write_all(key(1).verify_key().as_bytes()).unwrap();
    for fixture in fixtures::all().iter().filter(|fixture| fixture.kind == Kind::Valid) {
        let before = bytes(&fixture.file);
        let after = with_signature(&before, 1);
        assert_eq!(after.len(), before.len() + 64);
        assert!(after[4096..before.len()] == before[4096..], "{}", fixture.file);
        let structure = structure(memory(after.clone())).unwrap();
        let keys = [key(2).verify_key(), key(1).verify_key()];
        assert_eq!(verify_master_index(&structure, &keys).unwrap(), keys[1], "{}", fixture.file);

        let header = structure.header();
        let (start, end) = (header.index_offset as usize, header.signature.unwrap().offset);
        let digest = Sha256::digest(&after[start..end as usize]);
        let signature = after[end as usize..].try_into().unwrap();
        verify_digest(public.path(), &digest, signature).unwrap();
    }
}

#[test]
fn a_second_signature_covers_the_first_and_takes_its_place() {
    let once = with_signature(&bytes("v020-lz4-sparse-signed.hxz"), 1);
    let twice = with_signature(&once, 2);
    let structure = structure(memory(twice.clone())).unwrap();
    let is_valid = |number| verify_master_index(&structure, &[key(number).verify_key()]).is_ok();
    assert!(is_valid(2) && !is_valid(1));
    let first = once.len() - 10;
    let storage = Flipped { bytes: twice, at: first, mask: 1 };
    let flipped = crate::support::signed::structure(Arc::new(storage)).unwrap();
    assert!(verify_master_index(&flipped, &[key(2).verify_key()]).is_err());
}

#[test]
fn every_real_header_is_encoded_as_it_was() {
    for fixture in fixtures::all().iter().filter(|fixture| fixture.kind == Kind::Valid) {
        let bytes = bytes(&fixture.file);
        for header in candidates(&bytes[..4096], bytes.len() as u64).unwrap() {
            assert!(header.encode().unwrap() == bytes[..4096], "{}", fixture.file);
        }
    }
}

#[test]
fn upstreams_reader_reads_what_we_signed() {
    for name in ["v082-lz4-default.hxz", "v082-signed.hxz", "v082-lz4-aux.hxz", "v082-zstd.hxz"] {
        let fixture = fixtures::named(name);
        let mut file = Cursor::new(with_signature(&bytes(name), 1));
        let header = Header::read_from(&mut file).unwrap();
        let decoded = structure(memory(file.into_inner())).unwrap();
        let signature = decoded.header().signature.unwrap();
        assert_eq!(header.signature_offset, Some(signature.offset));
        assert_eq!(header.signature_length, Some(64));

        let content = fixture.main.unwrap();
        let upstream = Arc::new(Upstream(with_signature(&bytes(name), 1)));
        let archive = Archive::open(upstream, None).unwrap();
        let read = archive.read_at(ArchiveStream::Main, 0, content.size as usize).unwrap();
        assert_eq!(fixtures::sha256(&read), content.sha256, "{name}");
    }
}

/// A file in memory for upstream's library.
#[derive(Debug)]
struct Upstream(Bytes);

impl hexz_core::store::StorageBackend for Upstream {
    fn read_exact(&self, offset: u64, length: usize) -> hexz_common::Result<Bytes> {
        let start = offset as usize;
        Ok(self.0.slice(start..start + length))
    }

    fn len(&self) -> u64 {
        self.0.len() as u64
    }
}
