//! Cut points by content, with `FastCDC` (2020) as upstream's 0.7 and 0.8 use it.
//!
//! A cut point depends on all that lie before it, so one thread finds them, in one pass over the
//! image. The threads that compress read the same bytes again, from the page cache mostly.

use std::ops::Range;

use fastcdc::v2020;

use crate::snapshot::format::header::ChunkingParameters;
use crate::snapshot::write::cut::Chunking;
use crate::snapshot::write::error::ErrorKind;
use crate::snapshot::write::source::Source;

/// What is read at once beyond one chunk.
const READ_BYTES: u32 = 1 << 20;

/// Normalization level 1, which is what upstream uses.
const NORMALIZATION_BITS: u32 = 1;

/// Where chunks end, one after the other.
pub(super) struct Boundaries<'a> {
    source: &'a Source,
    cutter: Cutter,
    buffer: Vec<u8>,
    /// What of the image is in the buffer.
    buffered: Range<u64>,
    /// The next bytes of the image that may be anything but zero.
    data: Range<u64>,
    /// Length of a chunk from a run of zeros that does not end before the largest chunk does.
    zeros_bytes: u32,
}

impl<'a> Boundaries<'a> {
    pub(super) fn new(source: &'a Source, chunking: Chunking) -> Self {
        let cutter = Cutter::new(chunking.parameters());
        let zeros_bytes = cutter.cut(&vec![0; cutter.maximum_bytes as usize]);
        Self { source, cutter, buffer: Vec::new(), buffered: 0..0, data: 0..0, zeros_bytes }
    }

    /// Length of the chunk that begins at a position before the end of the image. Positions must
    /// not go back.
    pub(super) fn next_length(&mut self, position: u64) -> Result<u32, ErrorKind> {
        let image_bytes = self.source.bytes();
        let maximum_bytes = u64::from(self.cutter.maximum_bytes);
        let end = position.saturating_add(maximum_bytes).min(image_bytes);
        if position >= self.data.end {
            let next = self.source.next_data(position..image_bytes);
            self.data = next.unwrap_or(image_bytes..image_bytes);
        }
        // A hole costs nothing: all its chunks but the last are cut alike.
        if end <= self.data.start && end.saturating_sub(position) == maximum_bytes {
            return Ok(self.zeros_bytes);
        }
        if position < self.buffered.start || end > self.buffered.end {
            self.fill(position..end)?;
        }
        let window = self.buffer.get(length_of(self.buffered.start..position)..);
        let window = window.and_then(|window| window.get(..length_of(position..end)));
        Ok(self.cutter.cut(window.unwrap_or_default()))
    }

    /// Keeps what is there already, from the start of the range on.
    fn fill(&mut self, range: Range<u64>) -> Result<(), ErrorKind> {
        let end = range.end.saturating_add(u64::from(READ_BYTES)).min(self.source.bytes());
        let kept = if self.buffered.contains(&range.start) {
            range.start..self.buffered.end
        } else {
            range.start..range.start
        };
        self.buffer.drain(..self.buffer.len().saturating_sub(length_of(kept.clone())));
        self.buffer.resize(length_of(range.start..end), 0);
        // Should the read fail, nothing is buffered.
        self.buffered = range.start..range.start;
        let read = self.buffer.get_mut(length_of(kept.clone())..).unwrap_or_default();
        self.source.read(kept.end, read)?;
        self.buffered.end = end;
        Ok(())
    }
}

/// Every range here is at most the largest chunk and [`READ_BYTES`].
fn length_of(range: Range<u64>) -> usize {
    usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX)
}

/// `FastCDC` for one set of parameters.
struct Cutter {
    minimum_bytes: u32,
    average_bytes: u32,
    maximum_bytes: u32,
    mask_small: u64,
    mask_large: u64,
}

impl Cutter {
    fn new(parameters: ChunkingParameters) -> Self {
        let ChunkingParameters { average_log2, minimum_bytes, maximum_bytes } = parameters;
        let mask = |bits: u32| v2020::MASKS.get(bits as usize).copied().unwrap_or_default();
        Self {
            minimum_bytes,
            average_bytes: 1_u32.checked_shl(average_log2).unwrap_or(u32::MAX),
            maximum_bytes,
            mask_small: mask(average_log2.saturating_add(NORMALIZATION_BITS)),
            mask_large: mask(average_log2.saturating_sub(NORMALIZATION_BITS)),
        }
    }

    /// Length of the first chunk of `window`, which is not empty and has no more bytes than the
    /// largest chunk: given more, the algorithm cuts elsewhere than upstream's tools.
    fn cut(&self, window: &[u8]) -> u32 {
        let (_, length) = v2020::cut(
            window,
            self.minimum_bytes as usize,
            self.average_bytes as usize,
            self.maximum_bytes as usize,
            self.mask_small,
            self.mask_large,
            self.mask_small << 1,
            self.mask_large << 1,
        );
        // Never 0, or the image would have no end; more than there is would be no chunk.
        let length = u32::try_from(length.min(window.len())).unwrap_or(self.maximum_bytes);
        length.max(1)
    }
}

#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, reason = "a test fails by panicking")]
mod tests {
    use std::os::unix::fs::FileExt;

    use hexz_core::algo::dedup::cdc::StreamChunker;
    use hexz_core::algo::dedup::dcam::DedupeParams;
    use proptest::prelude::*;

    use super::*;

    fn lengths(source: &Source, chunking: Chunking) -> Vec<u32> {
        let mut boundaries = Boundaries::new(source, chunking);
        let mut lengths = Vec::new();
        let mut position = 0;
        while position < source.bytes() {
            let length = boundaries.next_length(position).unwrap();
            lengths.push(length);
            position += u64::from(length);
        }
        assert_eq!(position, source.bytes());
        lengths
    }

    fn upstream(image: &[u8], parameters: ChunkingParameters) -> Vec<u32> {
        let ChunkingParameters { average_log2, minimum_bytes, maximum_bytes } = parameters;
        let (f, m, z) = (average_log2, minimum_bytes, maximum_bytes);
        let chunker = StreamChunker::new(image, DedupeParams { f, m, z, ..Default::default() });
        let lengths = chunker.map(|chunk| u32::try_from(chunk.unwrap().len()).unwrap());
        // Upstream leaves an empty chunk behind a last one of the largest size.
        lengths.filter(|length| *length != 0).collect()
    }

    fn parameters() -> impl Strategy<Value = ChunkingParameters> {
        let own = (8_u32..23, 64_u32..=1 << 20, 1024_u32..=16 << 20)
            .prop_filter("smallest up to largest", |(_, minimum, maximum)| minimum <= maximum);
        let small = (8_u32..14, 64_u32..4096, 4096_u32..40_000);
        let real = prop::sample::select(vec![
            (16, 16384, 262_144),
            (14, 2048, 65536),
            (10, 1024, 8192),
            (13, 8192, 65536),
        ]);
        prop_oneof![real, small, own].prop_map(|(average_log2, minimum_bytes, maximum_bytes)| {
            ChunkingParameters { average_log2, minimum_bytes, maximum_bytes }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 128,
            failure_persistence: None,
            ..Default::default()
        })]

        #[test]
        fn chunks_are_those_of_upstream_also_in_and_around_holes(
            parameters in parameters(),
            // Noise, one byte over and over, or a hole.
            runs in prop::collection::vec((0..4_u8, 1..1_200_000_usize), 0..6),
            seed in any::<u64>(),
        ) {
            let file = tempfile::NamedTempFile::new().unwrap();
            let mut image = Vec::new();
            for (number, (kind, length)) in runs.into_iter().enumerate() {
                let start = image.len();
                image.resize(start + length, kind);
                if kind == 3 {
                    let mut hasher = blake3::Hasher::new();
                    hasher.update(&seed.to_le_bytes()).update(&[u8::try_from(number).unwrap()]);
                    hasher.finalize_xof().fill(&mut image[start..]);
                }
                if kind != 0 {
                    file.as_file().write_all_at(&image[start..], start as u64).unwrap();
                }
            }
            file.as_file().set_len(image.len() as u64).unwrap();
            let source = Source::open(file.path()).unwrap();
            let ours = lengths(&source, Chunking::new(parameters).unwrap());
            prop_assert_eq!(ours, upstream(&image, parameters), "{:?}", parameters);
        }
    }

    #[test]
    fn a_hole_is_not_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 40).unwrap();
        file.as_file().write_all_at(&[7; 10], 1 << 39).unwrap();
        let source = Source::open(file.path()).unwrap();
        let (average_log2, minimum_bytes, maximum_bytes) = (16, 16384, 262_144);
        let parameters = ChunkingParameters { average_log2, minimum_bytes, maximum_bytes };
        // Reading a tebibyte would take longer than anybody waits for a test.
        let lengths = lengths(&source, Chunking::new(parameters).unwrap());
        assert!(lengths.len() >= (1 << 22) && lengths.len() <= (1 << 22) + 2, "{}", lengths.len());
    }

    #[test]
    fn an_image_that_became_shorter_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().write_all_at(&[7; 3 << 20], 0).unwrap();
        let source = Source::open(file.path()).unwrap();
        file.as_file().set_len(2 << 20).unwrap();
        let (average_log2, minimum_bytes, maximum_bytes) = (16, 16384, 262_144);
        let parameters = ChunkingParameters { average_log2, minimum_bytes, maximum_bytes };
        let mut boundaries = Boundaries::new(&source, Chunking::new(parameters).unwrap());
        let mut position = 0;
        let error = loop {
            match boundaries.next_length(position) {
                Ok(length) => position += u64::from(length),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, ErrorKind::SizeChanged { .. }), "{error}");
    }
}
