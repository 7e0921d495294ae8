//! URIs with wildcards, in ghostunnel's terms.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fmt;
use std::str::FromStr;

/// A URI, in the path of which whole segments may be left open.
///
/// * `*` is exactly one segment: `spiffe://corp/ns/*/sa/build` and `spiffe://corp/ns/build/*`.
/// * `**` is one or more, and stands only at the end: `spiffe://corp/ns/build/**`.
///
/// All else is compared byte for byte, which is how SPIFFE ids compare. Neither wildcard takes
/// an empty segment, `.` or `..`, or a query or fragment, none of which a SPIFFE id may have, so
/// that an open segment never opens more than it shows. Scheme and authority have no wildcards: who
/// runs a trust domain is not left open.
///
/// Source: ghostunnel's package `wildcard`. It also takes a slash at the end of either side for
/// nothing and `**` for no segment at all, where this is stricter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UriPattern {
    text: String,
    /// Up to the path, with the slashes.
    prefix: String,
    path: Vec<Segment>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Exactly(String),
    One,
    OneOrMore,
}

/// Text that is no pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UriPatternError {
    /// Without a scheme, nothing would ever match.
    #[error("not a URI: it does not begin with a scheme, as in `spiffe://`")]
    NoScheme,
    /// The trust domain has to be named.
    #[error("a wildcard may stand only in the path of a URI, after the host or trust domain")]
    WildcardBeforePath,
    /// `build-*` looks as if it worked.
    #[error("a wildcard stands for whole segments between slashes, not for a part of one")]
    PartialSegment,
    /// `**` in the middle.
    #[error("`**` may stand only at the end")]
    NotLast,
}

impl UriPattern {
    /// Whether a URI of a certificate is one of those that are meant.
    #[must_use]
    pub fn matches(&self, uri: &str) -> bool {
        let Some((prefix, path)) = split(uri) else { return false };
        if prefix != self.prefix {
            return false;
        }
        let mut segments = path.into_iter().flat_map(|path| path.split('/'));
        for wanted in &self.path {
            let Some(found) = segments.next() else { return false };
            match wanted {
                Segment::Exactly(text) if found == text => {}
                Segment::One if is_plain(found) => {}
                Segment::OneOrMore => return is_plain(found) && segments.all(is_plain),
                Segment::Exactly(_) | Segment::One => return false,
            }
        }
        segments.next().is_none()
    }
}

impl FromStr for UriPattern {
    type Err = UriPatternError;

    fn from_str(text: &str) -> Result<Self, UriPatternError> {
        let (prefix, path) = split(text).ok_or(UriPatternError::NoScheme)?;
        if prefix.contains('*') {
            return Err(UriPatternError::WildcardBeforePath);
        }
        let mut segments: Vec<Segment> = Vec::new();
        for segment in path.into_iter().flat_map(|path| path.split('/')) {
            if segments.last() == Some(&Segment::OneOrMore) {
                return Err(UriPatternError::NotLast);
            }
            segments.push(match segment {
                "*" => Segment::One,
                "**" => Segment::OneOrMore,
                _ if segment.contains('*') => return Err(UriPatternError::PartialSegment),
                _ => Segment::Exactly(segment.to_owned()),
            });
        }
        Ok(Self { text: text.to_owned(), prefix: prefix.to_owned(), path: segments })
    }
}

impl fmt::Display for UriPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What comes before the path, and the path without its first slash where there is one.
///
/// ```text
/// spiffe://corp/ns/build → spiffe://corp, ns/build      urn:uuid:1 → urn:uuid:1, none
/// ```
fn split(uri: &str) -> Option<(&str, Option<&str>)> {
    let (scheme, rest) = uri.split_once(':')?;
    if scheme.is_empty() || scheme.contains('/') {
        return None;
    }
    let Some(rest) = rest.strip_prefix("//") else { return Some((uri, None)) };
    match rest.split_once('/') {
        Some((_, path)) => {
            let prefix = uri.strip_suffix(path)?.strip_suffix('/')?;
            Some((prefix, Some(path)))
        }
        None => Some((uri, None)),
    }
}

fn is_plain(segment: &str) -> bool {
    !matches!(segment, "" | "." | "..") && !segment.contains(['?', '#'])
}
