//! Partitions of a disk image: MBR and GPT, read and checked. Nothing in a table is trusted.
//!
//! Layouts: "Legacy Master Boot Record" and "GUID Partition Table" of the UEFI specification,
//! section 5. Numbers are those of Linux: primary partitions of an MBR are 1 to 4 and logical ones
//! begin with 5, a partition of a GPT has the number of its entry.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod gpt;
mod mbr;

use std::fmt;
use std::ops::Range;

use self::mbr::Mbr;

/// Sector of an MBR in bytes, whatever the disk had.
const SECTOR_BYTES: u64 = 512;

/// Most partitions that an error lists.
const LISTED_MAX: usize = 16;

/// A partition, in bytes of the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// As Linux counts.
    pub number: u32,
    /// Where it begins.
    pub offset: u64,
    /// How long it is. Not 0.
    pub bytes: u64,
    /// An extended partition: it holds the logical ones, and is none itself.
    pub is_extended: bool,
}

/// The partitions of a disk, in the order of their numbers. They need not lie on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Which kind of table.
    pub scheme: Scheme,
    /// All that are not empty.
    pub partitions: Vec<Partition>,
}

/// Which kind of table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Master boot record.
    Mbr,
    /// GUID partition table.
    Gpt {
        /// The header at the beginning was damaged, and the one at the end was used.
        from_backup: bool,
    },
}

/// Why there is no such partition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PartitionError {
    /// Neither MBR nor GPT.
    #[error("there is no partition table: export the whole disk, or a part with offset= and size=")]
    NoTable,
    /// The MBR says that there is a GPT, and there is none that could be used.
    #[error("the partition table (GPT) is damaged: {primary}; its copy at the end: {backup}")]
    DamagedGpt {
        /// What is wrong with the one at the beginning.
        primary: GptFault,
        /// What is wrong with the one at the end.
        backup: GptFault,
    },
    /// The records of logical partitions do not make a chain.
    #[error(
        "the chain of logical partitions is damaged: the record at byte {offset} {fault}; the \
         partitions before it are: {there}"
    )]
    DamagedChain {
        /// The record.
        offset: u64,
        /// What is wrong with it.
        fault: ChainFault,
        /// What was found before.
        there: Partitions,
    },
    /// The table has no such entry.
    #[error("there is no partition {number}; there are: {there}")]
    NoSuch {
        /// What was asked for.
        number: u32,
        /// What there is.
        there: Partitions,
    },
    /// Only a frame around others.
    #[error("partition {number} is the extended one, which only holds others; there are: {there}")]
    Extended {
        /// What was asked for.
        number: u32,
        /// What there is.
        there: Partitions,
    },
    /// The table is that of a larger disk.
    #[error(
        "partition {number} has {bytes} bytes at offset {offset}, which the disk of {disk_bytes} \
         bytes does not hold"
    )]
    PastEnd {
        /// What was asked for.
        number: u32,
        /// Where it should begin.
        offset: u64,
        /// How long it should be.
        bytes: u64,
        /// What there is.
        disk_bytes: u64,
    },
    /// The bytes of the table cannot be read.
    #[error("the partition table cannot be read: {0}")]
    Unreadable(String),
}

/// What is wrong with a GPT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GptFault {
    /// No header there.
    #[error("no header")]
    NoHeader,
    /// A number that no tool would write.
    #[error("{0} is out of bounds")]
    OutOfBounds(&'static str),
    /// A checksum is wrong.
    #[error("the CRC-32 of its {0} is wrong")]
    Checksum(&'static str),
}

/// What is wrong with a record of logical partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainFault {
    /// Not on the disk, or not in the extended partition.
    #[error("does not lie in the extended partition")]
    Outside,
    /// No signature.
    #[error("is no boot record")]
    NoRecord,
    /// Seen before.
    #[error("leads back to one before it")]
    Loop,
    /// More than any tool makes.
    #[error("is one more than the {0} that are followed")]
    TooMany(usize),
}

/// Partitions as an error lists them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partitions(Vec<Partition>);

impl fmt::Display for Partitions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (place, partition) in self.0.iter().take(LISTED_MAX).enumerate() {
            let Partition { number, offset, bytes, is_extended } = partition;
            let separator = if place == 0 { "" } else { ", " };
            let extended = if *is_extended { "extended, " } else { "" };
            write!(f, "{separator}{number} ({extended}{bytes} bytes at {offset})")?;
        }
        match self.0.len().saturating_sub(LISTED_MAX) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mbr => "MBR",
            Self::Gpt { .. } => "GPT",
        })
    }
}

/// Reads so many bytes from an offset. An error says in words why it cannot.
pub type Read<'a> = dyn FnMut(u64, u32) -> Result<Vec<u8>, String> + 'a;

/// Finds a partition on a disk of `disk_bytes` bytes. It lies on the disk as a whole.
///
/// `read` is called with ranges that lie on the disk, each 1 MiB at most, and about 1000 times at
/// most.
///
/// # Errors
///
/// [`PartitionError`], which says what partitions there are.
pub fn find(
    number: u32,
    disk_bytes: u64,
    read: &mut Read<'_>,
) -> Result<(Scheme, Partition), PartitionError> {
    let mut disk = Disk { bytes: disk_bytes, read };
    let Table { scheme, partitions } = disk.table()?;
    let Some(found) = partitions.iter().find(|partition| partition.number == number) else {
        return Err(PartitionError::NoSuch { number, there: Partitions(partitions) });
    };
    let found = found.clone();
    if found.is_extended {
        return Err(PartitionError::Extended { number, there: Partitions(partitions) });
    }
    let Partition { offset, bytes, .. } = found;
    match offset.checked_add(bytes) {
        Some(end) if end <= disk_bytes => Ok((scheme, found)),
        Some(_) | None => Err(PartitionError::PastEnd { number, offset, bytes, disk_bytes }),
    }
}

/// A disk whose bytes can be read.
struct Disk<'a, 'b> {
    bytes: u64,
    read: &'a mut Read<'b>,
}

impl Disk<'_, '_> {
    fn table(&mut self) -> Result<Table, PartitionError> {
        let first = self.read(0, SECTOR_BYTES)?;
        let mbr = first.as_deref().and_then(Mbr::parse);
        // A disk that was an MBR disk once and is a GPT disk now says so in its MBR, and the other
        // way round the GPT is what was left behind.
        if let Some(mbr) = &mbr
            && !mbr.is_protective()
        {
            return self.logical_partitions(mbr);
        }
        match self.gpt()? {
            Ok(table) => Ok(table),
            Err((primary, backup)) if mbr.is_some() => {
                Err(PartitionError::DamagedGpt { primary, backup })
            }
            Err(_) => Err(PartitionError::NoTable),
        }
    }

    /// `None` if the bytes do not lie on the disk.
    fn read(&mut self, offset: u64, bytes: u64) -> Result<Option<Vec<u8>>, PartitionError> {
        let lies_on_disk = offset.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        let (true, Ok(length)) = (lies_on_disk, u32::try_from(bytes)) else { return Ok(None) };
        let read = (self.read)(offset, length).map_err(PartitionError::Unreadable)?;
        Ok((read.len() as u64 == bytes).then_some(read))
    }
}

/// Bytes of a table at a position. 0 behind its end, which its length was checked for before.
fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let found = bytes.get(at..).and_then(|bytes| bytes.first_chunk::<N>());
    found.copied().unwrap_or([0; N])
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(number(bytes, at))
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(number(bytes, at))
}

/// Sectors to bytes, if they can be counted.
fn in_bytes(sectors: Range<u64>, sector_bytes: u64) -> Option<Range<u64>> {
    let at = |sector: u64| sector.checked_mul(sector_bytes);
    Some(at(sectors.start)?..at(sectors.end)?)
}

#[cfg(test)]
pub(crate) mod tests;
