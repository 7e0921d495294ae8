//! `hexz-nbd inspect`: what a snapshot is, without a key, without parents, without reading blocks.

use std::collections::{BTreeMap, HashSet};
use std::fmt::{self, Display};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use crate::cli::Failure;
use crate::cli::escape::Escaped;
use crate::cli::key_files::read_verify_keys;
use crate::cli::signatures::{ManifestReport, SignatureReport};
use crate::cli::size::ByteSize;
use crate::snapshot::format::Family;
use crate::snapshot::format::header::Header;
use crate::snapshot::format::index::{Entry, EntryKind};
use crate::snapshot::page::hashes_of_zeros;
use crate::snapshot::structure::BLOCK_BYTES_MAX_DEFAULT;
use crate::snapshot::{Content, FileBackend, StorageBackend as _, Stream, Structure, chain};

/// Show what a snapshot is and how it is stored.
///
/// Reads the header and the index only, so it needs neither a passphrase nor parents. Signatures are
/// compared with the keys of --key.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The snapshot.
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Directory in which parents of a thin snapshot are looked for, behind its own, repeatable.
    #[arg(long, value_name = "DIR")]
    parent_dir: Vec<PathBuf>,

    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,

    /// Public key of 32 raw bytes that may have signed the snapshot or its manifest, repeatable.
    #[arg(long = "key", value_name = "PUB")]
    keys: Vec<PathBuf>,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let storage = Arc::new(FileBackend::new(&arguments.file)?);
    let structure = Structure::read(storage, BLOCK_BYTES_MAX_DEFAULT)?;
    let mut report = Report::of(&structure, &arguments.parent_dir)?;
    let keys = read_verify_keys(&arguments.keys)?;
    report.signature = SignatureReport::of(&structure, &keys)?;
    report.manifest = ManifestReport::of(&structure, &keys);
    let mut out = io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", report.lines())?;
    }
    out.flush()?;
    Ok(())
}

/// Everything there is to say. The names are those of the JSON and stay as they are.
#[derive(Debug, Serialize)]
struct Report {
    file: String,
    file_bytes: u64,
    family: String,
    releases: &'static str,
    content: &'static str,
    compression: &'static str,
    /// `null` if there is none. 0 if one was trained and nothing was found.
    dictionary_bytes: Option<u64>,
    /// Target of fixed chunking. Informative.
    block_bytes: u32,
    chunking: Chunking,
    /// Size of both streams.
    content_bytes: u64,
    /// Bytes of content for each byte of the file. `null` if there is no content.
    ratio: Option<f64>,
    /// As recorded. Untrusted.
    parents: Vec<String>,
    /// The files that are taken for them. `null` where there is none.
    parent_files: Vec<Option<String>>,
    encryption: Option<Encryption>,
    signature: Option<SignatureReport>,
    /// `null` if there is none beside the snapshot.
    manifest: Option<ManifestReport>,
    metadata_bytes: Option<u64>,
    main: StreamReport,
    auxiliary: Option<StreamReport>,
}

#[derive(Debug, Serialize)]
struct Chunking {
    method: &'static str,
    /// Recorded by release 0.8 only.
    average_bytes: Option<u64>,
    minimum_bytes: Option<u32>,
    maximum_bytes: Option<u32>,
}

#[derive(Debug, Serialize)]
struct Encryption {
    kdf: &'static str,
    iterations: u32,
}

/// One stream, on its own: what it shares with the other one is counted in both. Of the entries
/// of one stored block all but the first are duplicates.
#[derive(Debug, Default, Serialize)]
struct StreamReport {
    declared_bytes: u64,
    /// What the blocks add up to.
    indexed_bytes: u64,
    pages: usize,
    unreadable_pages: usize,
    entries: u64,
    data_entries: u64,
    sparse_entries: u64,
    parent_entries: u64,
    /// Those whose bytes have no hash of their own: nothing shows if their parent is replaced.
    parent_entries_unproven: u64,
    empty_entries: u64,
    corrupt_entries: u64,
    distinct_blocks: u64,
    /// What the distinct blocks take in the file.
    stored_bytes: u64,
    sparse: Share,
    duplicate: Share,
    parent: Share,
    /// `null` where blocks have no hash that would tell. Most of it is usually duplicate too.
    zeros_stored_as_data: Option<Share>,
    block_lengths: Option<Lengths>,
}

#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Share {
    bytes: u64,
    percent: f64,
}

/// Of all blocks that have bytes, in plain bytes. The median is the lower one of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Lengths {
    minimum_bytes: u32,
    median_bytes: u32,
    maximum_bytes: u32,
}

impl Report {
    fn of(structure: &Structure, parent_directories: &[PathBuf]) -> Result<Self, Failure> {
        let header = structure.header();
        let main = StreamReport::of(structure, Stream::Main);
        let auxiliary = StreamReport::of(structure, Stream::Auxiliary);
        let auxiliary = Some(auxiliary).filter(|a| a.pages != 0 || a.declared_bytes != 0);
        let mut content = Content::from_metadata(&structure.metadata()?);
        if content == Content::Image && main.is_without_size() {
            content = Content::ImageWithoutSize;
        }
        let auxiliary_bytes = auxiliary.as_ref().map_or(0, StreamReport::bytes);
        let content_bytes = main.bytes().saturating_add(auxiliary_bytes);
        Ok(Self {
            file: structure.name().to_owned(),
            file_bytes: structure.file_bytes(),
            family: structure.family().to_string(),
            releases: structure.family().releases(),
            content: content_name(content),
            compression: header.compression.name(),
            dictionary_bytes: header.dictionary.map(|span| span.length),
            block_bytes: header.block_bytes,
            chunking: Chunking::of(header),
            content_bytes,
            ratio: ratio(content_bytes, structure.file_bytes()),
            parents: header.parents.clone(),
            parent_files: header
                .parents
                .iter()
                .map(|recorded| {
                    let found = chain::locate(structure, recorded, parent_directories).ok()?;
                    Some(found.name().to_owned())
                })
                .collect(),
            encryption: header.encryption.map(|encryption| Encryption {
                kdf: "pbkdf2-hmac-sha256",
                iterations: encryption.iterations,
            }),
            signature: None,
            manifest: None,
            metadata_bytes: header.metadata.map(|span| span.length),
            main,
            auxiliary,
        })
    }

    fn lines(&self) -> Lines {
        let mut lines = Lines::default();
        lines.add("file", Escaped(&self.file));
        lines.add("file size", ByteSize(self.file_bytes));
        lines.add("family", format_args!("{} (releases {})", self.family, self.releases));
        lines.add("content", self.content.replace('_', " "));
        lines.add("content size", ByteSize(self.content_bytes));
        if let Some(ratio) = self.ratio {
            lines.add("ratio", format_args!("{ratio:.2}"));
        }
        lines.add("compression", self.compression);
        match self.dictionary_bytes {
            None => lines.add("dictionary", "none"),
            Some(bytes) => lines.add("dictionary", ByteSize(bytes)),
        }
        lines.add("block size", format_args!("{}, informative", ByteSize(self.block_bytes.into())));
        lines.add("chunking", &self.chunking);
        for (parent, file) in self.parents.iter().zip(&self.parent_files) {
            lines.add("parent", Escaped(parent));
            lines.add("parent file", Escaped(file.as_deref().unwrap_or("not found")));
        }
        let streams = [Some(&self.main), self.auxiliary.as_ref()].into_iter().flatten();
        let unproven: u64 = streams.map(|stream| stream.parent_entries_unproven).sum();
        if unproven != 0 {
            lines.add(
                "unnoticed",
                format_args!(
                    "{unproven} references into parents have no hash of their bytes: a replaced \
                     parent may give other bytes and nothing would show it; sign, or pin it with \
                     parent-blake3="
                ),
            );
        }
        match &self.encryption {
            None => lines.add("encryption", "none"),
            Some(Encryption { kdf, iterations }) => lines
                .add("encryption", format_args!("aes-256-gcm, {kdf} with {iterations} iterations")),
        }
        match &self.signature {
            None => lines.add("signature", "none"),
            Some(signature) => lines.add("signature", signature),
        }
        match &self.manifest {
            None => lines.add("manifest", "none"),
            Some(manifest) => {
                manifest.lines().into_iter().for_each(|(name, value)| lines.add(name, value));
            }
        }
        match self.metadata_bytes {
            None => lines.add("metadata", "none"),
            Some(bytes) => lines.add("metadata", ByteSize(bytes)),
        }
        self.main.add_lines(Stream::Main, &mut lines);
        if let Some(auxiliary) = &self.auxiliary {
            auxiliary.add_lines(Stream::Auxiliary, &mut lines);
        }
        lines
    }
}

fn content_name(content: Content) -> &'static str {
    match content {
        Content::Image => "image",
        Content::ImageWithoutSize => "image_without_size",
        Content::Directory => "directory",
        Content::Tar => "tar",
        Content::Safetensors => "safetensors",
    }
}

impl Chunking {
    fn of(header: &Header) -> Self {
        let parameters = header.chunking;
        // As in thin snapshots of ours: cut by content between two equal bounds.
        let is_fixed = parameters.is_some_and(|p| p.minimum_bytes == p.maximum_bytes);
        Self {
            method: if header.variable_blocks && !is_fixed { "content_defined" } else { "fixed" },
            average_bytes: parameters.and_then(|p| 1_u64.checked_shl(p.average_log2)),
            minimum_bytes: parameters.map(|p| p.minimum_bytes),
            maximum_bytes: parameters.map(|p| p.maximum_bytes),
        }
    }
}

impl Display for Chunking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.method.replace('_', " "))?;
        if let (Some(minimum), Some(average), Some(maximum)) =
            (self.minimum_bytes, self.average_bytes, self.maximum_bytes)
        {
            write!(f, ", minimum {minimum}, average {average}, maximum {maximum} bytes")?;
        }
        Ok(())
    }
}

impl StreamReport {
    /// Reads one page after another. What grows with the snapshot is the set of stored blocks
    /// and the number of different block lengths.
    fn of(structure: &Structure, stream: Stream) -> Self {
        let pages = structure.index().pages(stream);
        let mut report = Self {
            declared_bytes: structure.index().stream_bytes(stream),
            pages: pages.len(),
            ..Self::default()
        };
        let mut counter = Counter::default();
        for record in pages {
            match structure.entries(record) {
                Ok(entries) => counter.add_page(&mut report, structure, &entries),
                Err(_) => report.unreadable_pages = report.unreadable_pages.saturating_add(1),
            }
        }
        report.distinct_blocks = counter.offsets.len() as u64;
        report.block_lengths = lengths(&counter.lengths);
        let stream_bytes = report.bytes();
        let share = |bytes| Share { bytes, percent: percent(bytes, stream_bytes) };
        report.sparse = share(counter.sparse_bytes);
        report.duplicate = share(counter.duplicate_bytes);
        report.parent = share(counter.parent_bytes);
        report.zeros_stored_as_data = (!counter.lacks_hash).then(|| share(counter.zero_bytes));
        report
    }

    fn is_without_size(&self) -> bool {
        self.declared_bytes == 0 && self.indexed_bytes != 0
    }

    /// The size that can be read.
    fn bytes(&self) -> u64 {
        if self.is_without_size() { self.indexed_bytes } else { self.declared_bytes }
    }

    fn add_lines(&self, stream: Stream, lines: &mut Lines) {
        let mut add =
            |name: &str, value: &dyn Display| lines.add(&format!("{stream} {name}"), value);
        if self.is_without_size() {
            add(
                "size",
                &format_args!(
                    "0, packed from a block device or a pipe; the index holds {}",
                    ByteSize(self.indexed_bytes)
                ),
            );
        } else {
            add("size", &ByteSize(self.declared_bytes));
        }
        if self.indexed_bytes != self.bytes() {
            add("size of blocks", &ByteSize(self.indexed_bytes));
        }
        add("pages", &self.pages);
        if self.unreadable_pages != 0 {
            add(
                "unreadable pages",
                &format_args!("{}, what follows leaves them out", self.unreadable_pages),
            );
        }
        add("entries", &self.entries);
        if self.corrupt_entries != 0 {
            add("corrupt entries", &self.corrupt_entries);
        }
        add(
            "distinct blocks",
            &format_args!("{}, {}", self.distinct_blocks, ByteSize(self.stored_bytes)),
        );
        add("sparse", &self.sparse);
        add("duplicates", &self.duplicate);
        if self.parent_entries != 0 {
            add("in parents", &self.parent);
        }
        match &self.zeros_stored_as_data {
            Some(share) => add("zeros as data", share),
            None => add("zeros as data", &"unknown, blocks have no hashes"),
        }
        if let Some(Lengths { minimum_bytes, median_bytes, maximum_bytes }) = self.block_lengths {
            add(
                "block lengths",
                &format_args!(
                    "minimum {minimum_bytes}, median {median_bytes}, maximum {maximum_bytes} bytes"
                ),
            );
        }
    }
}

/// What is only needed while counting.
#[derive(Default)]
struct Counter {
    offsets: HashSet<u64>,
    lengths: BTreeMap<u32, u64>,
    sparse_bytes: u64,
    duplicate_bytes: u64,
    parent_bytes: u64,
    zero_bytes: u64,
    /// Whether a block has no hash, so that it may be zeros or not.
    lacks_hash: bool,
}

impl Counter {
    fn add_page(&mut self, report: &mut StreamReport, structure: &Structure, entries: &[Entry]) {
        let bounds = structure.entry_bounds();
        // Commits of old releases: the hash may be that of more than the bytes.
        let by_place = !structure.header().variable_blocks && structure.family() != Family::D;
        let zeros = hashes_of_zeros(entries, bounds.logical_bytes_max);
        for entry in entries {
            let bytes = u64::from(entry.logical_length);
            report.entries += 1;
            report.indexed_bytes = report.indexed_bytes.saturating_add(bytes);
            if entry.logical_length != 0 {
                *self.lengths.entry(entry.logical_length).or_default() += 1;
            }
            match entry.kind(bounds) {
                Ok(EntryKind::Data) => {
                    report.data_entries += 1;
                    self.lacks_hash |= entry.hash == [0; 32];
                    if self.offsets.insert(entry.offset) {
                        report.stored_bytes += u64::from(entry.length);
                    } else {
                        self.duplicate_bytes += bytes;
                    }
                    if zeros.get(&entry.logical_length) == Some(&entry.hash) {
                        self.zero_bytes += bytes;
                    }
                }
                Ok(EntryKind::Sparse) => {
                    report.sparse_entries += 1;
                    self.sparse_bytes += bytes;
                }
                Ok(EntryKind::Parent) => {
                    report.parent_entries += 1;
                    report.parent_entries_unproven += u64::from(entry.hash == [0; 32] || by_place);
                    self.parent_bytes += bytes;
                }
                Ok(EntryKind::Nothing) => report.empty_entries += 1,
                Err(_) => report.corrupt_entries += 1,
            }
        }
    }
}

/// Minimum, lower median and maximum of lengths that were counted.
fn lengths(counts: &BTreeMap<u32, u64>) -> Option<Lengths> {
    let middle = counts.values().sum::<u64>().checked_sub(1)? / 2;
    let mut before = 0;
    let median = counts.iter().find(|(_, count)| {
        before += **count;
        before > middle
    });
    Some(Lengths {
        minimum_bytes: *counts.first_key_value()?.0,
        median_bytes: *median?.0,
        maximum_bytes: *counts.last_key_value()?.0,
    })
}

#[expect(clippy::cast_precision_loss, reason = "shown with two digits")]
fn ratio(content_bytes: u64, file_bytes: u64) -> Option<f64> {
    (content_bytes != 0).then(|| content_bytes as f64 / file_bytes as f64)
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

impl Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {:.1} %", ByteSize(self.bytes), self.percent)
    }
}

/// `name: value`, the values below each other.
#[derive(Default)]
struct Lines(Vec<(String, String)>);

impl Lines {
    fn add(&mut self, name: &str, value: impl Display) {
        self.0.push((format!("{name}:"), value.to_string()));
    }
}

impl Display for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.0.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        self.0.iter().try_for_each(|(name, value)| writeln!(f, "{name:width$} {value}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_that_of_all_blocks_and_the_lower_one_of_two() {
        assert_eq!(lengths(&BTreeMap::new()), None);
        for (counts, expected) in [
            (vec![(7, 1)], (7, 7, 7)),
            (vec![(1, 1), (9, 1)], (1, 1, 9)),
            (vec![(1, 1), (5, 1), (9, 1)], (1, 5, 9)),
            (vec![(1, 2), (5, 1), (9, 4)], (1, 9, 9)),
            (vec![(1, 4), (5, 1), (9, 3)], (1, 1, 9)),
        ] {
            let (minimum_bytes, median_bytes, maximum_bytes) = expected;
            let expected = Lengths { minimum_bytes, median_bytes, maximum_bytes };
            assert_eq!(lengths(&counts.into_iter().collect()), Some(expected));
        }
    }
}
