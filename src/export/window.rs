//! Which bytes of a stream an export shows: the one place that knows how the two are counted.

use std::ops::Range;

/// Bytes of a stream that an export shows, and zeros behind them.
///
/// ```text
/// stream  |       [ shown          )      |
/// export          [ shown          | zeros )
///                 0                        size
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// In the stream. Its start is not behind its end.
    shown: Range<u64>,
    /// In bytes.
    zeros: u64,
}

/// What the size of an export is rounded up to, in bytes: a power of two from 512 to 65536.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RoundUp(u32);

/// Why a stream cannot be shown like this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// Nothing to show.
    #[error(
        "a window of 0 bytes at offset {offset} shows nothing; give it a size, or leave `size` out \
         for all bytes to the end of the stream"
    )]
    Empty {
        /// Where it begins.
        offset: u64,
    },
    /// It begins where the stream has ended already.
    #[error(
        "the window begins at offset {offset}, and the stream has {stream_bytes} bytes: choose a \
         smaller `offset`"
    )]
    BeginsPastEnd {
        /// Where it begins.
        offset: u64,
        /// What there is.
        stream_bytes: u64,
    },
    /// It ends behind the stream.
    #[error(
        "the window of {bytes} bytes at offset {offset} does not lie in the stream of \
         {stream_bytes} bytes, which ends {left} bytes behind that offset",
        left = .stream_bytes.saturating_sub(*.offset)
    )]
    EndsPastEnd {
        /// Where it begins.
        offset: u64,
        /// What it should show.
        bytes: u64,
        /// What there is.
        stream_bytes: u64,
    },
    /// With the zeros it would have more bytes than can be counted.
    #[error("{bytes} bytes cannot be rounded up: no export has more than 2^64 bytes")]
    TooLarge {
        /// Without the zeros.
        bytes: u64,
    },
}

impl RoundUp {
    /// Smallest unit, a sector.
    pub const MIN: u32 = 512;
    /// Largest unit. No client has larger sectors.
    pub const MAX: u32 = 65_536;

    /// `None` unless it is a power of two from 512 to 65536.
    #[must_use]
    pub fn new(bytes: u64) -> Option<Self> {
        let bytes = u32::try_from(bytes).ok()?;
        let fits = bytes.is_power_of_two() && (Self::MIN..=Self::MAX).contains(&bytes);
        fits.then_some(Self(bytes))
    }
}

impl Window {
    /// All of a stream.
    #[must_use]
    pub fn whole(stream_bytes: u64) -> Self {
        Self { shown: 0..stream_bytes, zeros: 0 }
    }

    /// `bytes` bytes from `offset` on, or all there are.
    ///
    /// # Errors
    ///
    /// [`WindowError`] if they do not lie in the stream.
    pub fn part(stream_bytes: u64, offset: u64, bytes: Option<u64>) -> Result<Self, WindowError> {
        if bytes == Some(0) {
            return Err(WindowError::Empty { offset });
        }
        let left = stream_bytes.checked_sub(offset).filter(|left| *left != 0);
        let left = left.ok_or(WindowError::BeginsPastEnd { offset, stream_bytes })?;
        let bytes = bytes.unwrap_or(left);
        match offset.checked_add(bytes) {
            Some(end) if end <= stream_bytes => Ok(Self { shown: offset..end, zeros: 0 }),
            Some(_) | None => Err(WindowError::EndsPastEnd { offset, bytes, stream_bytes }),
        }
    }

    /// As many zeros behind as make the size a multiple of `unit`.
    ///
    /// # Errors
    ///
    /// [`WindowError::TooLarge`] if there is no such multiple.
    pub fn rounded_up(self, unit: RoundUp) -> Result<Self, WindowError> {
        let bytes = self.shown_bytes();
        let size = bytes.checked_next_multiple_of(u64::from(unit.0));
        let zeros = size.and_then(|size| size.checked_sub(bytes));
        let zeros = zeros.ok_or(WindowError::TooLarge { bytes })?;
        Ok(Self { zeros, ..self })
    }

    /// Size of the export in bytes, zeros included.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.shown_bytes().saturating_add(self.zeros)
    }

    /// The bytes of the stream that are shown.
    #[must_use]
    pub fn shown(&self) -> Range<u64> {
        self.shown.clone()
    }

    /// Zeros behind the bytes of the stream.
    #[must_use]
    pub fn zeros(&self) -> u64 {
        self.zeros
    }

    fn shown_bytes(&self) -> u64 {
        self.shown.end.saturating_sub(self.shown.start)
    }

    /// What `length` bytes of the export from `offset` on are: a range of the stream, and so many
    /// zeros behind it. Either may be empty. `None` if they do not all lie in the export.
    #[must_use]
    pub fn map(&self, offset: u64, length: u64) -> Option<(Range<u64>, u64)> {
        let end = offset.checked_add(length).filter(|end| *end <= self.size_bytes())?;
        let in_stream =
            |position: u64| self.shown.start.saturating_add(position).min(self.shown.end);
        let range = in_stream(offset)..in_stream(end);
        let zeros = length.saturating_sub(range.end.saturating_sub(range.start));
        Some((range, zeros))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_lies_in_the_stream_or_is_refused_with_the_numbers() {
        let shown = |offset, bytes| Window::part(1000, offset, bytes).map(|window| window.shown());
        for (offset, bytes, expected) in [
            (0, None, 0..1000),
            (0, Some(1000), 0..1000),
            (999, None, 999..1000),
            (999, Some(1), 999..1000),
            (17, Some(500), 17..517),
        ] {
            assert_eq!(shown(offset, bytes), Ok(expected));
        }
        for (offset, bytes, parts) in [
            (0, Some(0), ["0 bytes", "offset 0"]),
            (1000, None, ["offset 1000", "1000 bytes"]),
            (u64::MAX, None, ["18446744073709551615", "1000 bytes"]),
            (1000, Some(1), ["offset 1000", "1000 bytes"]),
            (990, Some(11), ["11 bytes at offset 990", "ends 10 bytes behind"]),
            (1, Some(u64::MAX), ["18446744073709551615", "1000 bytes"]),
        ] {
            let error = shown(offset, bytes).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{offset} {bytes:?}: {error}");
        }
    }

    #[test]
    fn what_is_read_lies_in_the_window_and_the_rest_is_zeros() {
        let window = Window::part(5000, 100, Some(700)).unwrap();
        let rounded = window.clone().rounded_up(RoundUp::new(512).unwrap()).unwrap();
        assert_eq!((window.size_bytes(), rounded.size_bytes(), rounded.zeros()), (700, 1024, 324));
        for (offset, length, plain, padded) in [
            (0, 700, Some((100..800, 0)), Some((100..800, 0))),
            (0, 0, Some((100..100, 0)), Some((100..100, 0))),
            (699, 1, Some((799..800, 0)), Some((799..800, 0))),
            (699, 2, None, Some((799..800, 1))),
            (700, 0, Some((800..800, 0)), Some((800..800, 0))),
            (700, 324, None, Some((800..800, 324))),
            (1000, 24, None, Some((800..800, 24))),
            (0, 1024, None, Some((100..800, 324))),
            (0, 1025, None, None),
            (1025, 0, None, None),
            (u64::MAX, 1, None, None),
            (1, u64::MAX, None, None),
        ] {
            assert_eq!(window.map(offset, length), plain, "{offset} {length}");
            assert_eq!(rounded.map(offset, length), padded, "{offset} {length}");
        }
    }

    #[test]
    fn a_size_is_rounded_up_to_a_power_of_two_and_no_further() {
        for bad in [0, 1, 256, 511, 513, 1536, 131_072, u64::MAX] {
            assert_eq!(RoundUp::new(bad), None, "{bad}");
        }
        for (bytes, unit, size) in
            [(0, 512, 0), (1, 512, 512), (512, 512, 512), (513, 512, 1024), (513, 65_536, 65_536)]
        {
            let unit = RoundUp::new(unit).unwrap();
            assert_eq!(Window::whole(bytes).rounded_up(unit).unwrap().size_bytes(), size);
        }
        let error = Window::whole(u64::MAX).rounded_up(RoundUp(512)).unwrap_err();
        assert_eq!(error, WindowError::TooLarge { bytes: u64::MAX });
    }
}
