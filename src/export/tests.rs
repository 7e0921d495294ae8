use super::*;
use std::path::Path;

fn export(fixture: &str, stream: Stream, as_raw: bool) -> Result<Export, ExportError> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(fixture);
    let settings = ExportSettings { name: "disk".into(), description: None, stream, as_raw };
    Export::new(File::open(path).unwrap(), settings)
}

#[test]
fn only_disk_images_are_exported_unless_the_operator_insists() {
    for (fixture, content) in
        [("v082-dirtree.hxz", Content::Directory), ("v082-tar.hxz", Content::Tar)]
    {
        let error = export(fixture, Stream::Main, false).unwrap_err();
        assert!(matches!(&error, ExportError::NotAnImage { content: c, .. } if *c == content));
        assert!(error.to_string().contains("as-raw"));
        assert!(export(fixture, Stream::Main, true).is_ok());
    }
}

#[test]
fn a_snapshot_without_a_size_is_refused_with_the_way_out() {
    let error = export("v082-blockdev-size0.hxz", Stream::Main, false).unwrap_err();
    assert!(error.to_string().contains("size=index"), "{error}");
}

#[test]
fn a_failed_read_gives_the_bytes_before_the_damage_and_no_name_of_a_file() {
    let damaged = export("h-flip-block.hxz", Stream::Main, false).unwrap();
    let failure = damaged.read(0, 421_000).unwrap_err();
    assert_eq!(failure.before.iter().map(Piece::bytes).sum::<u64>(), 232_213);
    assert_eq!(failure.error, Errno::EIO);
    assert_eq!(failure.message, "a block of the snapshot is damaged");
    let failure = damaged.read(420_999, 2).unwrap_err();
    assert_eq!((failure.before, failure.error), (vec![], Errno::EINVAL));
}

#[test]
fn a_stream_that_is_not_there_is_not_exported_as_nothing() {
    assert!(export("v082-lz4-aux.hxz", Stream::Auxiliary, false).is_ok());
    let error = export("v082-zstd.hxz", Stream::Auxiliary, false).unwrap_err();
    assert!(matches!(error, ExportError::NoStream { .. }));
}

fn bytes(pieces: Vec<Piece>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Data(data) => bytes.extend_from_slice(&data),
            Piece::Zeros(zeros) => bytes.resize(bytes.len() + usize::try_from(zeros).unwrap(), 0),
        }
    }
    bytes
}

fn shaped(part: Part, round_up: Option<u64>) -> Result<Export, ExportError> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/v082-lz4-aux.hxz");
    let (name, stream) = ("disk".into(), Stream::Main);
    let settings = ExportSettings { name, description: None, stream, as_raw: false };
    let round_up = round_up.map(|bytes| RoundUp::new(bytes).unwrap());
    Export::shaped(File::open(path).unwrap(), settings, Shape { part, round_up })
}

#[test]
fn a_window_shows_its_bytes_and_zeros_behind_them_also_from_the_cache() {
    let whole = shaped(Part::Whole, None).unwrap();
    let stream_bytes = whole.info().size_bytes;
    let all = bytes(whole.read(0, u32::try_from(stream_bytes).unwrap()).unwrap());
    let (offset, length) = (70_001, Some(100_003));
    let window = shaped(Part::Window { offset, bytes: length }, Some(512)).unwrap();
    assert_eq!(window.info().size_bytes, 100_352);
    let mut expected = all[70_001..170_004].to_vec();
    expected.resize(100_352, 0);
    assert!(bytes(window.read(0, 100_352).unwrap()) == expected);
    for (offset, length) in [(0, 1), (99_000, 1352), (100_002, 2), (100_003, 349), (5, 0)] {
        let cached = bytes(window.read_cached(offset, length).unwrap());
        let start = usize::try_from(offset).unwrap();
        let range = start..start + length as usize;
        assert_eq!(cached, expected[range], "{offset} {length}");
    }
    assert!(window.read_cached(100_351, 2).is_none());
    assert_eq!(window.read(100_351, 2).unwrap_err().error, Errno::EINVAL);
    let description = &window.info().description;
    for fact in ["main stream", "100003 bytes at offset 70001", "and 349 zeros"] {
        assert!(description.contains(fact), "{description}");
    }
}

#[test]
fn a_part_that_is_not_there_is_refused_with_the_file_and_the_numbers() {
    let window = Part::Window { offset: 1 << 40, bytes: None };
    let error = shaped(window, None).unwrap_err().to_string();
    assert!(error.contains("v082-lz4-aux.hxz: the window begins at"), "{error}");
    let error = shaped(Part::Partition(1), None).unwrap_err().to_string();
    assert!(error.contains("v082-lz4-aux.hxz: there is no partition table"), "{error}");
}
