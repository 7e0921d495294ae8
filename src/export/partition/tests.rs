#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::process::Command;

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

/// Finds a partition of a disk in memory.
fn found(disk: &[u8], number: u32) -> Result<(Scheme, Range<u64>), PartitionError> {
    let mut reads = 0;
    let mut read = |offset: u64, length: u32| {
        reads += 1;
        assert!(length <= 1 << 20, "{length}");
        let offset = usize::try_from(offset).unwrap();
        // Out of the disk is a panic.
        Ok(disk[offset..offset + length as usize].to_vec())
    };
    let outcome = find(number, disk.len() as u64, &mut read);
    assert!(reads < 1100, "{reads}");
    let (scheme, Partition { offset, bytes, .. }) = outcome?;
    Ok((scheme, offset..offset + bytes))
}

/// A disk of zeros with a table that `sfdisk` made.
fn disk(bytes: u64, script: &str) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    std::fs::File::create(&path).unwrap().set_len(bytes).unwrap();
    let written = directory.path().join("script");
    std::fs::write(&written, script).unwrap();
    let output = Command::new("sfdisk")
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .args(["--quiet", "--no-reread", "--no-tell-kernel"])
        .arg(&path)
        .stdin(std::fs::File::open(&written).unwrap())
        .output()
        .expect("there is no sfdisk: run scripts/setup, or install the Debian package fdisk");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read(&path).unwrap()
}

/// Two primary partitions, an extended one with three logical ones, out of order on the disk.
fn mbr() -> Vec<u8> {
    disk(
        64 * MIB,
        "label: dos\n1: start=2048, size=4096, type=83\n2: start=8192, size=2048, type=c, bootable\n\
         4: start=16384, size=100000, type=5\n5: start=18432, size=2048\n\
         6: start=40960, size=6144\n7: start=61440, size=100\n",
    )
}

fn gpt() -> Vec<u8> {
    disk(
        32 * MIB,
        "label: gpt\n1: start=2048, size=4096, type=uefi\n3: start=8192, size=2049, name=\"r\\n\"\n",
    )
}

const GPT: Scheme = Scheme::Gpt { from_backup: false };
const BACKUP: Scheme = Scheme::Gpt { from_backup: true };

fn sectors(start: u64, count: u64) -> Range<u64> {
    start * 512..(start + count) * 512
}

#[test]
fn primary_and_logical_partitions_of_an_mbr_are_found() {
    let disk = mbr();
    for (number, range) in [
        (1, sectors(2048, 4096)),
        (2, sectors(8192, 2048)),
        (5, sectors(18_432, 2048)),
        (6, sectors(40_960, 6144)),
        (7, sectors(61_440, 100)),
    ] {
        assert_eq!(found(&disk, number), Ok((Scheme::Mbr, range)), "{number}");
    }
    for number in [0, 3, 8, u32::MAX] {
        let error = found(&disk, number).unwrap_err();
        assert!(matches!(error, PartitionError::NoSuch { .. }), "{error}");
        let there = "1 (2097152 bytes at 1048576), 2 (1048576 bytes at 4194304), \
                     4 (extended, 51200000 bytes at 8388608), 5 (1048576 bytes at 9437184), \
                     6 (3145728 bytes at 20971520), 7 (51200 bytes at 31457280)";
        assert_eq!(
            error.to_string(),
            format!("there is no partition {number}; there are: {there}")
        );
    }
    let error = found(&disk, 4).unwrap_err();
    assert!(matches!(error, PartitionError::Extended { .. }), "{error}");
}

#[test]
fn partitions_of_a_gpt_are_found_with_either_copy_of_the_table() {
    let good = gpt();
    let (first, third) = (sectors(2048, 4096), sectors(8192, 2049));
    assert_eq!(found(&good, 1), Ok((GPT, first.clone())));
    assert_eq!(found(&good, 3), Ok((GPT, third.clone())));
    let error = found(&good, 2).unwrap_err().to_string();
    assert!(
        error.contains("1 (2097152 bytes at 1048576), 3 (1049088 bytes at 4194304)"),
        "{error}"
    );
    // Of the header, of the first entry, of its last byte.
    for damaged in [512, 512 + 24, 512 + 91, 1024, 1024 + 128 * 128 - 1] {
        let mut disk = good.clone();
        disk[damaged] ^= 1;
        assert_eq!(found(&disk, 3), Ok((BACKUP, third.clone())), "{damaged}");
        // The disk has grown: only the first header knows where the other one is.
        disk.resize(disk.len() + 5000 * 512, 0);
        let header_is_good = damaged >= 1024;
        assert_eq!(found(&disk, 3).is_ok(), header_is_good, "{damaged}");
    }
    let mut both = good.clone();
    both[1024] ^= 1;
    let last = both.len() - 512;
    both[last + 50] ^= 1;
    let error = found(&both, 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the partition table (GPT) is damaged: the CRC-32 of its entries is wrong; its copy at the \
         end: the CRC-32 of its header is wrong"
    );
    // Without what protects it, too.
    let mut unprotected = good;
    unprotected[..512].fill(0);
    assert_eq!(found(&unprotected, 1), Ok((GPT, first)));
}

/// As `sfdisk` writes it for a disk of 4096-byte sectors, made by hand.
#[test]
fn a_gpt_for_sectors_of_4096_bytes_is_found() {
    let mut disk = vec![0; 1 << 20];
    disk[..512].copy_from_slice(&gpt()[..512]);
    let entries = 8192..8192 + 4 * 128;
    disk[8192..8208].fill(7);
    disk[8192 + 32..8192 + 40].copy_from_slice(&6_u64.to_le_bytes());
    disk[8192 + 40..8192 + 48].copy_from_slice(&9_u64.to_le_bytes());
    let checksum = crc32fast::hash(&disk[entries]);
    let header = header(1, 255, 2, 4, 128, checksum);
    disk[4096..4096 + 92].copy_from_slice(&header);
    assert_eq!(found(&disk, 1), Ok((GPT, 6 * 4096..10 * 4096)));
}

fn header(
    own: u64,
    other: u64,
    entries_sector: u64,
    entries: u32,
    entry_bytes: u32,
    checksum: u32,
) -> [u8; 92] {
    let mut header = [0; 92];
    header[..8].copy_from_slice(b"EFI PART");
    header[8..12].copy_from_slice(&0x1_0000_u32.to_le_bytes());
    header[12..16].copy_from_slice(&92_u32.to_le_bytes());
    header[24..32].copy_from_slice(&own.to_le_bytes());
    header[32..40].copy_from_slice(&other.to_le_bytes());
    header[72..80].copy_from_slice(&entries_sector.to_le_bytes());
    header[80..84].copy_from_slice(&entries.to_le_bytes());
    header[84..88].copy_from_slice(&entry_bytes.to_le_bytes());
    header[88..92].copy_from_slice(&checksum.to_le_bytes());
    let own_checksum = crc32fast::hash(&header);
    header[16..20].copy_from_slice(&own_checksum.to_le_bytes());
    header
}

#[test]
fn a_gpt_with_numbers_out_of_bounds_is_refused_whatever_its_checksums_say() {
    let none = crc32fast::hash(&[]);
    for (header, part) in [
        (header(1, 9, 2, u32::MAX, 128, none), "number of entries"),
        (header(1, 9, 2, 8193, 128, none), "number of entries"),
        (header(1, 9, 2, 128, 0, none), "size of an entry"),
        (header(1, 9, 2, 128, 192, none), "size of an entry"),
        (header(1, 9, 2, 128, 8192, none), "size of an entry"),
        (header(1, 9, u64::MAX, 128, 128, none), "place of the entries"),
        (header(1, 9, 1 << 40, 128, 128, none), "place of the entries"),
        (header(1, u64::MAX, 2, 1, 128, none), "entries is wrong"),
        (header(2, 9, 2, 4, 128, none), "place of the header"),
    ] {
        let mut disk = gpt();
        let end = disk.len();
        disk[end - 64 * 512..].fill(0);
        disk[512..512 + 92].copy_from_slice(&header);
        let error = found(&disk, 1).unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn a_partition_that_does_not_lie_on_the_disk_is_refused_with_the_numbers() {
    let whole = mbr();
    let cut = &whole[..usize::try_from(sectors(61_440, 99).end).unwrap()];
    assert!(found(cut, 6).is_ok());
    let error = found(cut, 7).unwrap_err().to_string();
    assert!(error.contains("51200 bytes at offset 31457280"), "{error}");
    assert!(error.contains(&format!("disk of {} bytes", cut.len())), "{error}");
}

/// A chain of logical partitions: where each record is, and where it says that the next is, both
/// counted from the extended partition.
fn chain(links: &[(u32, u32)]) -> Vec<u8> {
    let mut disk = vec![0; 4 << 20];
    let entry = |disk: &mut [u8], at: usize, kind: u8, first: u32, count: u32| {
        disk[at + 4] = kind;
        disk[at + 8..at + 12].copy_from_slice(&first.to_le_bytes());
        disk[at + 12..at + 16].copy_from_slice(&count.to_le_bytes());
    };
    let sign = |disk: &mut [u8], at: usize| disk[at + 510..at + 512].copy_from_slice(&[0x55, 0xaa]);
    entry(&mut disk, 446, 0x0f, 100, 4000);
    sign(&mut disk, 0);
    for (place, next) in links {
        let record = (100 + *place as usize) * 512;
        entry(&mut disk, record + 446, 0x83, 1, 3);
        if *next != u32::MAX {
            entry(&mut disk, record + 462, 0x05, *next, 4);
        }
        sign(&mut disk, record);
    }
    disk
}

#[test]
fn a_chain_of_logical_partitions_ends_or_is_refused() {
    const END: u32 = u32::MAX;
    let good = chain(&[(0, 20), (20, 10), (10, END)]);
    assert_eq!(found(&good, 7), Ok((Scheme::Mbr, sectors(111, 3))));
    let endless: Vec<(u32, u32)> = (0..400).map(|record| (record * 4, record * 4 + 4)).collect();
    for (links, part) in [
        (&[(0, 20), (20, 0)][..], "leads back to one before it"),
        (&[(0, 0)], "leads back to one before it"),
        (&[(0, 20)], "is no boot record"),
        (&[(0, 4000)], "does not lie in the extended partition"),
        (&[(0, u32::MAX - 1)], "does not lie in the extended partition"),
        (&endless, "is one more than the 256 that are followed"),
    ] {
        let error = found(&chain(links), 5).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("5 (1536 bytes at 51712)"), "{error}");
    }
}

#[test]
fn what_has_no_table_is_told_from_what_has_no_such_partition() {
    let mut boot_sector = mbr();
    // Code where the entries would be.
    boot_sector[446] = 0x33;
    let empty = disk(4 * MIB, "label: dos\n");
    for disk in [&boot_sector[..], &empty, &[], &[0; 511], &[0; 512], &[0x55; 4096]] {
        assert_eq!(found(disk, 1), Err(PartitionError::NoTable));
    }
    let mut read = |_, _| Err("a block is damaged".to_owned());
    let error = find(1, 1 << 20, &mut read).unwrap_err().to_string();
    assert_eq!(error, "the partition table cannot be read: a block is damaged");
}

/// Numbers as a damaged or hostile table has them.
fn any_number() -> impl Strategy<Value = u64> {
    prop_oneof![0..200_u64, Just(u64::MAX), Just(u64::MAX >> 9), any::<u64>()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn no_bytes_panic_and_what_is_found_lies_on_the_disk(
        mut disk in proptest::collection::vec(any::<u8>(), 0..8192),
        entries in proptest::collection::vec((0..4_usize, 0..4_usize, 0..16_usize, any::<u32>()), 0..6),
        kinds in proptest::collection::vec(prop::sample::select(vec![0, 5, 0x0f, 0x83, 0x85, 0xee]), 16),
        number in 0..9_u32,
    ) {
        // Boot records with some sense in them, in the first sectors.
        for sector in 0..(disk.len() / 512).min(4) {
            let at = sector * 512;
            disk[at + 510..at + 512].copy_from_slice(&[0x55, 0xaa]);
            for entry in 0..4 {
                disk[at + 446 + 16 * entry] = 0;
                disk[at + 446 + 16 * entry + 4] = kinds[sector * 4 + entry];
                disk[at + 446 + 16 * entry + 9..at + 446 + 16 * entry + 12].fill(0);
            }
        }
        for (sector, entry, at, value) in entries {
            let at = sector * 512 + 446 + 16 * entry + at;
            if let Some(place) = disk.get_mut(at..at + 4) {
                place.copy_from_slice(&(value % 20).to_le_bytes());
            }
        }
        if let Ok((_, range)) = found(&disk, number) {
            prop_assert!(range.start < range.end && range.end <= disk.len() as u64);
        }
    }

    #[test]
    fn no_gpt_with_good_checksums_panics_either(
        (own, other, entries_sector) in (any_number(), any_number(), any_number()),
        (first, last) in (any_number(), any_number()),
        (entries, entry_bytes) in (0..300_u32, prop::sample::select(vec![0, 64, 128, 256, 4096, u32::MAX])),
        sectors in 0..80_usize,
        own_is_right: bool,
    ) {
        let mut disk = vec![0; sectors * 512];
        if let Some(place) = disk.get_mut(2 * 512..2 * 512 + 48) {
            place[..16].fill(9);
            place[32..40].copy_from_slice(&first.to_le_bytes());
            place[40..48].copy_from_slice(&last.to_le_bytes());
        }
        let at = usize::try_from(entries_sector).ok().and_then(|sector| sector.checked_mul(512));
        let length = entries as usize * entry_bytes as usize;
        let covered = at.and_then(|at| disk.get(at..at.checked_add(length)?));
        let checksum = covered.map_or(0, crc32fast::hash);
        let own = if own_is_right { 1 } else { own };
        let header = header(own, other, entries_sector, entries, entry_bytes, checksum);
        if let Some(place) = disk.get_mut(512..512 + 92) {
            place.copy_from_slice(&header);
        }
        if let Ok((_, range)) = found(&disk, 1) {
            prop_assert!(range.start < range.end && range.end <= disk.len() as u64);
        }
    }
}
