//! Lengths of time, as people write them.

use std::time::Duration;

/// Why a text is not a length of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DurationError {
    /// There is no whole number at the start.
    #[error("expected a whole number and a unit, such as 30s, 10m or 30d")]
    Number,
    /// A number of what?
    #[error("{0} of what? Write a unit behind the number, such as {0}s or {0}d")]
    NoUnit(String),
    /// What follows the number is no unit.
    #[error("unknown unit {0:?}: use ms, s, m (or min), h, d or w")]
    Unit(String),
    /// It does not fit into 64 bits of milliseconds.
    #[error("longer than can be counted")]
    TooLong,
}

/// Reads one whole number with one unit: `500ms`, `10s`, `5m` or `5min`, `12h`, `30d`, `2w`. Units
/// are in lower case.
pub(crate) fn parse(text: &str) -> Result<Duration, DurationError> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(DurationError::Number);
    }
    let milliseconds: u64 = match unit.trim_start() {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        "d" => 24 * 60 * 60 * 1000,
        "w" => 7 * 24 * 60 * 60 * 1000,
        "" => return Err(DurationError::NoUnit(number.to_owned())),
        // A fraction.
        other if other.starts_with(['.', ',']) => return Err(DurationError::Number),
        other => return Err(DurationError::Unit(other.to_owned())),
    };
    // The number is all digits, so only its size can be wrong.
    let number: u64 = number.parse().map_err(|_| DurationError::TooLong)?;
    number.checked_mul(milliseconds).map(Duration::from_millis).ok_or(DurationError::TooLong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_of_time_is_a_number_and_a_unit() {
        for (text, milliseconds) in [
            ("0s", 0),
            ("500ms", 500),
            ("10s", 10_000),
            ("90m", 90 * 60_000),
            ("90min", 90 * 60_000),
            ("12h", 12 * 3_600_000),
            ("30d", 30 * 86_400_000),
            (" 2 w ", 14 * 86_400_000),
            ("18446744073709551615ms", u64::MAX),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused_with_a_reason() {
        for text in ["", "s", "d30", "-1s", "+1s", "1.5h", "0,5d", "٣s"] {
            assert_eq!(parse(text), Err(DurationError::Number), "{text}");
        }
        for text in ["0", "30", " 30 "] {
            let number = text.trim().to_owned();
            assert_eq!(parse(text), Err(DurationError::NoUnit(number)), "{text}");
        }
        for (text, unit) in [("1M", "M"), ("1day", "day"), ("1h30m", "h30m"), ("1µs", "µs")] {
            assert_eq!(parse(text), Err(DurationError::Unit(unit.into())), "{text}");
        }
        for text in ["18446744073709551616ms", "18446744073709551615s", "99999999999999999999w"] {
            assert_eq!(parse(text), Err(DurationError::TooLong), "{text}");
        }
    }

    #[test]
    fn a_number_without_a_unit_is_answered_with_what_may_be_meant() {
        let error = parse("30").unwrap_err().to_string();
        assert_eq!(error, "30 of what? Write a unit behind the number, such as 30s or 30d");
    }
}
