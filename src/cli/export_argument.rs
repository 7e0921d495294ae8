//! `[NAME=]PATH[,key=value…]`: what to export, and how.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::cli::Failure;
use crate::cli::reading::{Reading, ReadingSettings, parse_digest};
use crate::cli::settings::AllowSettings;
use crate::cli::size::ByteSize;
use crate::export::{Part, RoundUp, Shape};
use crate::snapshot::Stream;

/// One snapshot, or a directory of them, as it stands on the command line.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ExportArgument {
    pub(crate) name: Option<String>,
    pub(crate) path: PathBuf,
    pub(crate) description: Option<String>,
    pub(crate) size_from_index: bool,
    /// The main stream, and the auxiliary one beside it if there is one, unless it is said.
    pub(crate) stream: Option<Stream>,
    pub(crate) part: PartArgument,
    pub(crate) round_up: Option<RoundUp>,
    /// File with the passphrase, in place of the one for all.
    pub(crate) key_file: Option<PathBuf>,
    /// BLAKE3 of the files that may be its parents, in any generation. Any if there is none.
    pub(crate) parent_blake3: Vec<[u8; 32]>,
    /// Whose holder must have signed it, in place of those for all.
    pub(crate) verify_key: Vec<PathBuf>,
    pub(crate) require_manifest: bool,
    pub(crate) as_raw: bool,
    /// Clients without TLS may read it, where others need TLS.
    pub(crate) plaintext: bool,
    /// Who may read it. On the command line there are only rules for all exports.
    pub(crate) allow: AllowSettings,
}

/// What of a stream to export, as it was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct PartArgument {
    /// In bytes.
    pub(crate) offset: Option<u64>,
    /// In bytes.
    pub(crate) size: Option<u64>,
    pub(crate) partition: Option<u32>,
}

impl ExportArgument {
    pub(crate) fn of_path(path: impl Into<PathBuf>) -> Self {
        Self {
            name: None,
            path: path.into(),
            description: None,
            size_from_index: false,
            stream: None,
            part: PartArgument::default(),
            round_up: None,
            key_file: None,
            parent_blake3: Vec::new(),
            verify_key: Vec::new(),
            require_manifest: false,
            as_raw: false,
            plaintext: false,
            allow: AllowSettings::default(),
        }
    }

    /// Parses an argument. What is not UTF-8 is a path and nothing else.
    pub(crate) fn parse(argument: OsString) -> Result<Self, String> {
        let text = match argument.into_string() {
            Ok(text) => text,
            Err(path) => return Ok(Self::of_path(path)),
        };
        let mut fields = split_at_commas(&text).into_iter();
        let mut parsed = Self::of_path("");
        let what = fields.next().unwrap_or_default();
        match what.split_once('=') {
            // A name has no slash, so `./a=b.hxz` is a path.
            Some((name, path)) if !name.contains('/') => {
                parsed.name = Some(name.to_owned());
                parsed.path = path.into();
            }
            _ => parsed.path = what.into(),
        }
        if parsed.path.as_os_str().is_empty() {
            return Err("there is no path".to_owned());
        }
        if parsed.name.as_ref().is_some_and(String::is_empty) {
            return Err(
                "the name before `=` is empty; choose the default export with --default-export"
                    .to_owned(),
            );
        }
        for field in fields {
            parsed.set(&field)?;
        }
        parsed.shape()?;
        Ok(parsed)
    }

    /// How it is opened, by what is said for all snapshots and of this one. Reads its keys.
    pub(crate) fn reading(&self, all: &ReadingSettings) -> Result<Reading, Failure> {
        let mut reading = Reading::new(all);
        reading.size_from_index = self.size_from_index;
        reading.parent_digests.clone_from(&self.parent_blake3);
        reading.require_manifest |= self.require_manifest;
        if let Some(key_file) = &self.key_file {
            reading.key_files = vec![key_file.clone()];
        }
        let own = &self.verify_key;
        let keys = if own.is_empty() { &all.verify_key } else { own };
        reading.with_keys(keys, &self.path)
    }

    /// What the options for a part come to.
    pub(crate) fn shape(&self) -> Result<Shape, String> {
        let PartArgument { offset, size, partition } = self.part;
        let part = match (partition, offset, size) {
            (None, None, None) => Part::Whole,
            (None, offset, bytes) => Part::Window { offset: offset.unwrap_or(0), bytes },
            (Some(0), ..) => return Err("partition=0: the first partition is 1".to_owned()),
            (Some(number), None, None) => Part::Partition(number),
            (Some(_), ..) => {
                return Err(
                    "partition= and offset= or size= exclude each other: the partition table says \
                     where a partition lies"
                        .to_owned(),
                );
            }
        };
        Ok(Shape { part, round_up: self.round_up })
    }

    fn set(&mut self, field: &str) -> Result<(), String> {
        match field.split_once('=') {
            Some(("desc", text)) => self.description = Some(text.to_owned()),
            Some(("size", "index")) => self.size_from_index = true,
            Some(("size", text)) => self.part.size = Some(bytes("size", text)?),
            Some(("offset", text)) => self.part.offset = Some(bytes("offset", text)?),
            Some(("partition", text)) => {
                let number = text.parse().map_err(|_| {
                    format!("partition={text}: expected the number of a partition, such as 1")
                })?;
                self.part.partition = Some(number);
            }
            Some(("round-up", text)) => self.round_up = Some(round_up(bytes("round-up", text)?)?),
            Some(("key-file", path)) => self.key_file = Some(path.into()),
            Some(("verify-key", path)) => self.verify_key.push(path.into()),
            Some(("parent-blake3", text)) => self.parent_blake3.push(parse_digest(text)?),
            Some(("stream", "main")) => self.stream = Some(Stream::Main),
            Some(("stream", "aux")) => self.stream = Some(Stream::Auxiliary),
            None if field == "require-manifest" => self.require_manifest = true,
            None if field == "as-raw" => self.as_raw = true,
            None if field == "plaintext" => self.plaintext = true,
            _ => {
                return Err(format!(
                    "unknown option `{field}`; there are desc=TEXT, offset=BYTES, size=BYTES, \
                     size=index, partition=NUMBER, round-up=512, stream=main, stream=aux, \
                     key-file=FILE, parent-blake3=HEX, verify-key=PUB, require-manifest, as-raw and \
                     plaintext (a comma inside a value is written twice)"
                ));
            }
        }
        Ok(())
    }
}

fn bytes(option: &str, text: &str) -> Result<u64, String> {
    let hint =
        if option == "size" { ", or `size=index` for the size that the index has" } else { "" };
    let parsed = text.parse::<ByteSize>();
    parsed.map(|size| size.0).map_err(|error| format!("{option}={text}: {error}{hint}"))
}

/// A unit to round up to.
pub(crate) fn round_up(bytes: u64) -> Result<RoundUp, String> {
    RoundUp::new(bytes).ok_or_else(|| {
        format!(
            "an export cannot be rounded up to a multiple of {bytes} bytes: choose a power of two \
             from {} to {}, such as 512, which is what the Linux kernel needs",
            RoundUp::MIN,
            RoundUp::MAX
        )
    })
}

/// Splits at single commas; two commas stand for one.
fn split_at_commas(text: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character == ',' && characters.next_if_eq(&',').is_none() {
            fields.push(String::new());
        } else if let Some(field) = fields.last_mut() {
            field.push(character);
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ExportArgument, String> {
        ExportArgument::parse(text.into())
    }

    #[test]
    fn name_path_and_options_are_told_apart() {
        assert_eq!(parse("a/disk.hxz"), Ok(ExportArgument::of_path("a/disk.hxz")));
        assert_eq!(parse("./a=b.hxz"), Ok(ExportArgument::of_path("./a=b.hxz")));
        assert_eq!(
            parse(&format!(
                "root=a/disk.hxz,desc=before,, after=x,size=index,stream=aux,key-file=secret,\
                 parent-blake3={},verify-key=public.key,require-manifest,as-raw,plaintext",
                "ab".repeat(32)
            )),
            Ok(ExportArgument {
                name: Some("root".into()),
                path: "a/disk.hxz".into(),
                description: Some("before, after=x".into()),
                size_from_index: true,
                stream: Some(Stream::Auxiliary),
                part: PartArgument::default(),
                round_up: None,
                key_file: Some("secret".into()),
                parent_blake3: vec![[0xab; 32]],
                verify_key: vec!["public.key".into()],
                require_manifest: true,
                as_raw: true,
                plaintext: true,
                allow: AllowSettings::default(),
            })
        );
    }

    #[test]
    fn a_part_is_said_with_units_and_size_index_keeps_its_meaning() {
        let shape = |text: &str| {
            let argument = parse(text).unwrap();
            (argument.size_from_index, argument.shape().unwrap())
        };
        let of = |part, round_up: Option<u64>| Shape {
            part,
            round_up: round_up.map(|bytes| RoundUp::new(bytes).unwrap()),
        };
        let window = |offset, bytes| Part::Window { offset, bytes };
        for (text, from_index, expected) in [
            ("a.hxz", false, of(Part::Whole, None)),
            ("a.hxz,size=index", true, of(Part::Whole, None)),
            ("a.hxz,size=7", false, of(window(0, Some(7)), None)),
            ("a.hxz,offset=1MiB", false, of(window(1 << 20, None), None)),
            ("a.hxz,offset=1MiB,size=64KB", false, of(window(1 << 20, Some(64_000)), None)),
            ("a.hxz,size=index,size=1K", true, of(window(0, Some(1024)), None)),
            ("a.hxz,size=1K,size=index", true, of(window(0, Some(1024)), None)),
            ("a.hxz,partition=5,round-up=512", false, of(Part::Partition(5), Some(512))),
            ("a.hxz,round-up=64KiB", false, of(Part::Whole, Some(65_536))),
        ] {
            assert_eq!(shape(text), (from_index, expected), "{text}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_choices() {
        for (text, part) in [
            ("", "no path"),
            ("name=", "no path"),
            ("=disk.hxz", "--default-export"),
            ("disk.hxz,", "unknown option ``"),
            ("disk.hxz,size=nine", "size=index"),
            ("disk.hxz,offset=index", "offset=index: expected a whole number"),
            ("disk.hxz,offset=1Q", "unknown unit"),
            ("disk.hxz,size=-1", "whole number"),
            ("disk.hxz,size", "unknown option `size`"),
            ("disk.hxz,partition=0", "the first partition is 1"),
            ("disk.hxz,partition=sda1", "number of a partition"),
            ("disk.hxz,partition=1,offset=0", "exclude each other"),
            ("disk.hxz,size=1,partition=1", "exclude each other"),
            ("disk.hxz,round-up=1", "power of two from 512 to 65536"),
            ("disk.hxz,round-up=1000", "power of two from 512 to 65536"),
            ("disk.hxz,round-up=128KiB", "power of two from 512 to 65536"),
            ("disk.hxz,as-raw=yes", "unknown option"),
            ("disk.hxz,parent-blake3=12", "64 hexadecimal digits"),
            ("disk.hxz,stream=memory", "stream=aux"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
