//! Master boot record, and the chain of records that holds logical partitions.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::BTreeSet;

use super::{
    ChainFault, Disk, Partition, PartitionError, Partitions, SECTOR_BYTES, Scheme, Table, in_bytes,
    le32,
};

/// Where the four entries begin.
const ENTRIES_AT: usize = 446;
const ENTRY_BYTES: usize = 16;
const SIGNATURE: [u8; 2] = [0x55, 0xaa];

/// Type of the partition that protects a GPT.
const TYPE_PROTECTIVE: u8 = 0xee;
/// Types of partitions that hold others: CHS, LBA, Linux.
const TYPES_EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

/// Logical partitions have numbers from here on.
const FIRST_LOGICAL: u32 = 5;

/// Most records of a chain that are followed. Linux names 256 partitions at most.
const RECORDS_MAX: usize = 256;

/// Four entries of a boot record.
pub(super) struct Mbr([Entry; 4]);

#[derive(Clone, Copy)]
struct Entry {
    kind: u8,
    first_sector: u32,
    sectors: u32,
}

impl Entry {
    /// ```text
    /// 0        1        4      5        8              12        16
    /// | status | CHS    | type | CHS    | first sector | sectors |
    /// ```
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (status, kind) = (*bytes.first()?, *bytes.get(4)?);
        let entry = Self { kind, first_sector: le32(bytes, 8), sectors: le32(bytes, 12) };
        // Code of a boot sector without partitions has any value there.
        matches!(status, 0 | 0x80).then_some(entry)
    }

    fn is_empty(self) -> bool {
        self.kind == 0 || self.sectors == 0
    }

    fn is_extended(self) -> bool {
        TYPES_EXTENDED.contains(&self.kind) && !self.is_empty()
    }

    /// The numbers have 32 bits each, so that nothing overflows 64.
    fn partition(self, number: u32, base_sector: u64) -> Option<Partition> {
        let start = base_sector.checked_add(u64::from(self.first_sector))?;
        let end = start.checked_add(u64::from(self.sectors))?;
        let range = in_bytes(start..end, SECTOR_BYTES)?;
        let bytes = range.end.checked_sub(range.start)?;
        let is_extended = self.is_extended();
        Some(Partition { number, offset: range.start, bytes, is_extended })
    }
}

impl Mbr {
    /// A sector with the signature, and four entries that can be entries.
    pub(super) fn parse(sector: &[u8]) -> Option<Self> {
        let entries = sector.get(ENTRIES_AT..)?;
        let (entries, signature) = entries.split_at_checked(ENTRY_BYTES.saturating_mul(4))?;
        if !signature.starts_with(&SIGNATURE) {
            return None;
        }
        let mut parsed = entries.chunks_exact(ENTRY_BYTES).map(Entry::parse);
        let mut next = || parsed.next().flatten();
        Some(Self([next()?, next()?, next()?, next()?]))
    }

    /// Whether there is a GPT behind it: "the OS type field MUST be set to 0xEE".
    pub(super) fn is_protective(&self) -> bool {
        self.0.iter().any(|entry| entry.kind == TYPE_PROTECTIVE)
    }

    fn has_partitions(&self) -> bool {
        self.0.iter().any(|entry| !entry.is_empty())
    }
}

impl Disk<'_, '_> {
    pub(super) fn logical_partitions(&mut self, mbr: &Mbr) -> Result<Table, PartitionError> {
        if !mbr.has_partitions() {
            return Err(PartitionError::NoTable);
        }
        let mut partitions: Vec<Partition> = (1_u32..)
            .zip(mbr.0)
            .filter(|(_, entry)| !entry.is_empty())
            .filter_map(|(number, entry)| entry.partition(number, 0))
            .collect();
        let extended: Vec<Entry> = mbr.0.into_iter().filter(|entry| entry.is_extended()).collect();
        let mut next_number = FIRST_LOGICAL;
        for entry in extended {
            self.follow_chain(entry, &mut next_number, &mut partitions)?;
        }
        Ok(Table { scheme: Scheme::Mbr, partitions })
    }

    /// Each record has a logical partition, counted from itself, and a link to the next record,
    /// counted from the extended partition.
    fn follow_chain(
        &mut self,
        extended: Entry,
        next_number: &mut u32,
        partitions: &mut Vec<Partition>,
    ) -> Result<(), PartitionError> {
        let first = u64::from(extended.first_sector);
        let end = first.saturating_add(u64::from(extended.sectors));
        let mut seen = BTreeSet::new();
        let mut record = first;
        loop {
            let offset = record.saturating_mul(SECTOR_BYTES);
            let damaged = |fault, partitions: &[Partition]| PartitionError::DamagedChain {
                offset,
                fault,
                there: Partitions(partitions.to_vec()),
            };
            if record >= end {
                return Err(damaged(ChainFault::Outside, partitions));
            }
            if !seen.insert(record) {
                return Err(damaged(ChainFault::Loop, partitions));
            }
            if seen.len() > RECORDS_MAX {
                return Err(damaged(ChainFault::TooMany(RECORDS_MAX), partitions));
            }
            let Some(sector) = self.read(offset, SECTOR_BYTES)? else {
                return Err(damaged(ChainFault::Outside, partitions));
            };
            let Some(Mbr(entries)) = Mbr::parse(&sector) else {
                return Err(damaged(ChainFault::NoRecord, partitions));
            };
            for entry in entries.iter().filter(|entry| !entry.is_empty() && !entry.is_extended()) {
                partitions.extend(entry.partition(*next_number, record));
                *next_number = next_number.saturating_add(1);
            }
            match entries.iter().find(|entry| entry.is_extended()) {
                Some(link) => record = first.saturating_add(u64::from(link.first_sector)),
                None => return Ok(()),
            }
        }
    }
}
