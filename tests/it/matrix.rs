//! The table of README.md that says which kinds of snapshots are read, made from reading them.
//!
//! Every valid fixture is served with what it needs, passphrase, parents and key, and copied by a
//! client; every hostile one is opened and verified. What is counted has passed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use hexz_nbd::snapshot::{ErrorKind, verify};

use crate::interop::{Expected, nbdcopy, serve};
use crate::support::fixtures::{self, Fixture, Kind};

const BEGIN: &str = "<!-- fixtures: made by tests/it/matrix.rs, UPDATE_README=1 writes it -->\n";
const END: &str = "<!-- end of fixtures -->\n";

/// A column: what a snapshot is beside its family and compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Nature {
    encrypted: bool,
    thin: bool,
    signed: bool,
}

impl Nature {
    fn of(fixture: &Fixture) -> Self {
        Self {
            encrypted: fixture.encrypted,
            thin: !fixture.parents.is_empty(),
            signed: fixture.signature.is_some(),
        }
    }

    /// The plain one first, then those of one property, then of more.
    fn all() -> Vec<Self> {
        let flags = [false, true];
        let mut all: Vec<Self> = flags
            .into_iter()
            .flat_map(|encrypted| flags.map(|thin| (encrypted, thin)))
            .flat_map(|(encrypted, thin)| flags.map(|signed| Self { encrypted, thin, signed }))
            .collect();
        all.sort_by_key(|nature| (nature.names().len(), *nature));
        all
    }

    fn names(self) -> Vec<&'static str> {
        let names = [(self.encrypted, "encrypted"), (self.thin, "thin"), (self.signed, "signed")];
        names.into_iter().filter_map(|(has, name)| has.then_some(name)).collect()
    }

    fn title(self) -> String {
        let names = self.names();
        if names.is_empty() { "plain".to_owned() } else { names.join(" and ") }
    }
}

/// A row: family and compression.
fn row(fixture: &Fixture) -> (String, &'static str) {
    let has_dictionary = fixture.dictionary.is_some_and(|(_, length)| length != 0);
    let compression = match (fixture.compression.as_str(), has_dictionary) {
        ("lz4", false) => "LZ4",
        ("zstd", false) => "Zstandard",
        ("zstd", true) => "Zstandard with a dictionary",
        other => panic!("{}: {other:?}", fixture.file),
    };
    (fixture.family.clone(), compression)
}

/// Fixtures, as many as have the stream.
#[derive(Debug, Default, Clone, Copy)]
struct Cell {
    main: u32,
    auxiliary: u32,
}

impl Cell {
    fn render(self) -> String {
        match self {
            Self { main: 0, .. } => "–".to_owned(),
            Self { main, auxiliary: 0 } => main.to_string(),
            Self { main, auxiliary } => format!("{main}, {auxiliary} aux"),
        }
    }
}

/// Copies every stream of every valid fixture, and counts.
fn cells() -> BTreeMap<(String, &'static str), BTreeMap<Nature, Cell>> {
    let fixtures: Vec<Fixture> =
        fixtures::all().into_iter().filter(|fixture| fixture.kind == Kind::Valid).collect();
    let exports: Vec<Expected> = fixtures
        .iter()
        .flat_map(|fixture| [Some(Expected::new(fixture)), Expected::auxiliary(fixture)])
        .flatten()
        .collect();
    let server = serve(&exports);
    let directory = tempfile::tempdir().unwrap();
    for export in &exports {
        export.check(&nbdcopy(&server.unix_uri(&export.name), &directory, &[]), "nbdcopy");
    }
    let mut rows: BTreeMap<_, BTreeMap<Nature, Cell>> = BTreeMap::new();
    for fixture in &fixtures {
        let cell = rows.entry(row(fixture)).or_default().entry(Nature::of(fixture)).or_default();
        cell.main += u32::from(fixture.main.is_some());
        cell.auxiliary += u32::from(fixture.aux.is_some());
    }
    rows
}

fn valid_table() -> String {
    let rows = cells();
    let there: BTreeSet<Nature> = rows.values().flat_map(|cells| cells.keys().copied()).collect();
    let (columns, missing): (Vec<Nature>, Vec<Nature>) =
        Nature::all().into_iter().partition(|nature| there.contains(nature));
    let mut table = "| Family | Compression |".to_owned();
    for column in &columns {
        write!(table, " {} |", column.title()).unwrap();
    }
    table.push_str(&format!("\n|---|---|{}\n", "---|".repeat(columns.len())));
    for ((family, compression), cells) in &rows {
        let family = if family == "any" { "any: empty" } else { family };
        write!(table, "| {family} | {compression} |").unwrap();
        for column in &columns {
            let cell = cells.get(column).copied().unwrap_or_default();
            write!(table, " {} |", cell.render()).unwrap();
        }
        table.push('\n');
    }
    let missing: Vec<String> = missing.into_iter().map(Nature::title).collect();
    table.push_str(&format!("\nNo fixture is: {}.\n", missing.join("; ")));
    table
}

/// What happens to a hostile one: at its opening, or at the reads of what is damaged.
fn outcome(fixture: &Fixture) -> String {
    let file = match fixture.open() {
        Err(error) => return format!("refused: {}", sentence(&error.kind)),
        Ok(file) => file,
    };
    let damaged = verify(&file, NonZeroUsize::MIN, &|_| {});
    assert!(!damaged.is_empty(), "{}", fixture.file);
    let ranges =
        damaged.iter().map(|range| (range.range.start, range.range.end - range.range.start));
    let expected = fixture.expect.as_ref().unwrap().bad_main_ranges.as_ref().unwrap();
    assert!(ranges.eq(expected.iter().copied()), "{}: {damaged:?}", fixture.file);
    let parts = damaged.iter().map(|damaged| {
        let (start, end) = (damaged.range.start, damaged.range.end);
        format!("served but for bytes {start} to {end}: {}", sentence(&damaged.error))
    });
    parts.collect::<Vec<_>>().join("; ")
}

/// Without what differs from machine to machine, and what would be a column.
fn sentence(error: &ErrorKind) -> String {
    let directory = fixtures::path("");
    let here = directory.display().to_string();
    let text = error.to_string().replace(here.trim_end_matches('/'), "its directory");
    assert!(!text.contains(['|', '\n']), "{text}");
    text
}

fn hostile_table() -> String {
    let mut table = "| Fixture | What was done to it | What happens |\n|---|---|---|\n".to_owned();
    for fixture in fixtures::all().iter().filter(|fixture| fixture.kind == Kind::Hostile) {
        let name = fixture.file.strip_suffix(".hxz").unwrap();
        let patch = fixture.patch.as_deref().unwrap();
        table.push_str(&format!("| `{name}` | {patch} | {} |\n", outcome(fixture)));
    }
    table
}

fn readme() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")
}

#[test]
fn the_table_of_fixtures_in_the_readme_is_what_was_read() {
    let made = format!("{BEGIN}\n{}\n{}\n{END}", valid_table(), hostile_table());
    let readme_text = fs::read_to_string(readme()).unwrap();
    let (before, rest) = readme_text.split_once(BEGIN).expect("the first marker");
    let (_, after) = rest.split_once(END).expect("the second marker");
    let updated = format!("{before}{made}{after}");
    if std::env::var_os("UPDATE_README").is_some_and(|value| value == "1") {
        fs::write(readme(), &updated).unwrap();
        return;
    }
    assert!(
        updated == readme_text,
        "README.md says something else. `UPDATE_README=1 cargo test --test it matrix` writes:\n{made}"
    );
}
