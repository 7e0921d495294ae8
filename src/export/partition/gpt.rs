//! GUID partition table. UEFI specification, section 5.3.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::{Disk, GptFault, Partition, PartitionError, Scheme, Table, in_bytes, le32, le64};

const SIGNATURE: &[u8; 8] = b"EFI PART";

/// Sectors of disks. The table does not say which it was made for.
const SECTOR_BYTES: [u64; 2] = [512, 4096];

const HEADER_BYTES_MIN: u32 = 92;

/// "This value MUST be set to a value of 128 x 2^n".
const ENTRY_BYTES_MIN: u32 = 128;
const ENTRY_BYTES_MAX: u32 = 4096;

/// Most bytes of entries that are read: 8192 of the usual size, where tools make 128.
const ENTRIES_BYTES_MAX: u64 = 1 << 20;

/// The fields of a header that matter.
struct Header {
    /// Where the other header is.
    alternate_sector: u64,
    entries_sector: u64,
    entries: u32,
    entry_bytes: u32,
    entries_crc: u32,
}

impl Header {
    /// ```text
    /// 0           8          12     16    20         24      32          40
    /// | signature | revision | size | CRC | reserved | LBA   | other LBA | …
    /// 72            80        84           88            92
    /// | entries LBA | entries | entry size | entries CRC |
    /// ```
    fn parse(sector: &[u8], own_sector: u64) -> Result<Self, GptFault> {
        if !sector.starts_with(SIGNATURE) {
            return Err(GptFault::NoHeader);
        }
        let header_bytes = le32(sector, 12);
        let length = usize::try_from(header_bytes).unwrap_or(usize::MAX);
        let header = sector.get(..length).filter(|_| header_bytes >= HEADER_BYTES_MIN);
        let header = header.ok_or(GptFault::OutOfBounds("size of the header"))?;
        let mut checksum = crc32fast::Hasher::new();
        // The checksum was taken with zeros in its own place.
        for part in [header.get(..16), Some(&[0; 4]), header.get(20..)].into_iter().flatten() {
            checksum.update(part);
        }
        if checksum.finalize() != le32(header, 16) {
            return Err(GptFault::Checksum("header"));
        }
        if le64(header, 24) != own_sector {
            return Err(GptFault::OutOfBounds("place of the header"));
        }
        let entry_bytes = le32(header, 84);
        let entry_fits = (ENTRY_BYTES_MIN..=ENTRY_BYTES_MAX).contains(&entry_bytes)
            && entry_bytes.is_power_of_two();
        if !entry_fits {
            return Err(GptFault::OutOfBounds("size of an entry"));
        }
        Ok(Self {
            alternate_sector: le64(header, 32),
            entries_sector: le64(header, 72),
            entries: le32(header, 80),
            entry_bytes,
            entries_crc: le32(header, 88),
        })
    }
}

impl Disk<'_, '_> {
    /// The table, or what is wrong with the one at the beginning and the one at the end.
    pub(super) fn gpt(&mut self) -> Result<Result<Table, (GptFault, GptFault)>, PartitionError> {
        let mut faults = Vec::new();
        for from_backup in [false, true] {
            for sector_bytes in SECTOR_BYTES {
                match self.one_gpt(sector_bytes, from_backup)? {
                    Ok(partitions) => {
                        let scheme = Scheme::Gpt { from_backup };
                        return Ok(Ok(Table { scheme, partitions }));
                    }
                    Err(fault) => faults.push((from_backup, fault)),
                }
            }
        }
        // What is wrong with a header says more than that there is none for other sectors.
        let fault = |of_backup| {
            let mut of_this = faults.iter().filter(|(backup, _)| *backup == of_backup);
            let telling = of_this.find(|(_, fault)| *fault != GptFault::NoHeader);
            telling.map_or(GptFault::NoHeader, |(_, fault)| *fault)
        };
        Ok(Err((fault(false), fault(true))))
    }

    fn one_gpt(
        &mut self,
        sector_bytes: u64,
        from_backup: bool,
    ) -> Result<Result<Vec<Partition>, GptFault>, PartitionError> {
        let sectors = self.bytes.checked_div(sector_bytes).unwrap_or(0);
        let mut own_sector = 1;
        if from_backup {
            own_sector = sectors.saturating_sub(1);
            // The disk may have grown since, and then the first header knows where the other is.
            if let Ok(header) = self.header(1, sector_bytes)? {
                own_sector = header.alternate_sector;
            }
        }
        let header = match self.header(own_sector, sector_bytes)? {
            Ok(header) => header,
            Err(fault) => return Ok(Err(fault)),
        };
        let bytes = u64::from(header.entries).saturating_mul(u64::from(header.entry_bytes));
        if bytes > ENTRIES_BYTES_MAX {
            return Ok(Err(GptFault::OutOfBounds("number of entries")));
        }
        let offset = header.entries_sector.checked_mul(sector_bytes);
        let entries = match offset {
            Some(offset) => self.read(offset, bytes)?,
            None => None,
        };
        let Some(entries) = entries else {
            return Ok(Err(GptFault::OutOfBounds("place of the entries")));
        };
        if crc32fast::hash(&entries) != header.entries_crc {
            return Ok(Err(GptFault::Checksum("entries")));
        }
        let entry_bytes = usize::try_from(header.entry_bytes).unwrap_or(usize::MAX);
        let numbered = (1_u32..).zip(entries.chunks_exact(entry_bytes));
        let found = numbered.filter_map(|(number, entry)| partition(number, entry, sector_bytes));
        Ok(Ok(found.collect()))
    }

    fn header(
        &mut self,
        own_sector: u64,
        sector_bytes: u64,
    ) -> Result<Result<Header, GptFault>, PartitionError> {
        let sector = match own_sector.checked_mul(sector_bytes) {
            Some(offset) => self.read(offset, sector_bytes)?,
            None => None,
        };
        Ok(sector.map_or(Err(GptFault::NoHeader), |sector| Header::parse(&sector, own_sector)))
    }
}

/// ```text
/// 0      16         32            40           48
/// | type | own GUID | first LBA   | last LBA   | …
/// ```
/// An entry without a type is not used; one that ends before it begins is none either.
fn partition(number: u32, entry: &[u8], sector_bytes: u64) -> Option<Partition> {
    if entry.iter().take(16).all(|byte| *byte == 0) {
        return None;
    }
    let (first, last) = (le64(entry, 32), le64(entry, 40));
    let range = in_bytes(first..last.checked_add(1)?, sector_bytes)?;
    let bytes = range.end.checked_sub(range.start).filter(|bytes| *bytes != 0)?;
    Some(Partition { number, offset: range.start, bytes, is_extended: false })
}
