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

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    #[test]
    fn a_wildcard_opens_whole_segments_and_only_where_it_stands() {
        for (pattern, uri, expected) in [
            ("spiffe://corp/ns/build", "spiffe://corp/ns/build", true),
            ("spiffe://corp/ns/build", "spiffe://corp/ns/build/", false),
            ("spiffe://corp/ns/build", "spiffe://corp/ns/Build", false),
            ("spiffe://corp/ns/build", "spiffe://corp/ns/builds", false),
            ("spiffe://corp/ns/build", "spiffe://corp.evil/ns/build", false),
            ("spiffe://corp", "spiffe://corp", true),
            ("spiffe://corp", "spiffe://corp/", false),
            ("spiffe://corp/*", "spiffe://corp/a", true),
            ("spiffe://corp/*", "spiffe://corp/a/b", false),
            ("spiffe://corp/*", "spiffe://corp/", false),
            ("spiffe://corp/*", "spiffe://corp", false),
            ("spiffe://corp/*", "spiffe://corp.evil/a", false),
            ("spiffe://corp/*", "spiffe://corp/..", false),
            ("spiffe://corp/*", "spiffe://corp/.", false),
            ("spiffe://corp/*", "spiffe://corp/a?b", false),
            ("spiffe://corp/*", "spiffe://corp/a#b", false),
            ("spiffe://corp/ns/*/sa/build", "spiffe://corp/ns/ci/sa/build", true),
            ("spiffe://corp/ns/*/sa/build", "spiffe://corp/ns/ci/x/sa/build", false),
            ("spiffe://corp/ns/*/sa/build", "spiffe://corp/ns/ci/sa/other", false),
            ("spiffe://corp/ns/**", "spiffe://corp/ns/a", true),
            ("spiffe://corp/ns/**", "spiffe://corp/ns/a/b/c", true),
            ("spiffe://corp/ns/**", "spiffe://corp/ns", false),
            ("spiffe://corp/ns/**", "spiffe://corp/ns/", false),
            ("spiffe://corp/ns/**", "spiffe://corp/ns/a//b", false),
            ("spiffe://corp/ns/**", "spiffe://corp/ns/a/../b", false),
            ("urn:uuid:1", "urn:uuid:1", true),
            ("urn:uuid:1", "urn:uuid:11", false),
            ("spiffe://corp/*", "", false),
            ("spiffe://corp/*", "corp/a", false),
        ] {
            let parsed: UriPattern = pattern.parse().unwrap();
            assert_eq!(parsed.matches(uri), expected, "{pattern} and {uri}");
            assert_eq!(parsed.to_string(), pattern);
        }
    }

    #[test]
    fn a_pattern_that_looks_as_if_it_did_more_is_refused() {
        for (pattern, error) in [
            ("", UriPatternError::NoScheme),
            ("*", UriPatternError::NoScheme),
            ("**", UriPatternError::NoScheme),
            ("corp/ns", UriPatternError::NoScheme),
            ("://corp", UriPatternError::NoScheme),
            ("/a:b", UriPatternError::NoScheme),
            ("spiffe://*", UriPatternError::WildcardBeforePath),
            ("spiffe://*/ns", UriPatternError::WildcardBeforePath),
            ("spiffe://*.corp/ns", UriPatternError::WildcardBeforePath),
            ("*://corp/ns", UriPatternError::WildcardBeforePath),
            ("urn:*", UriPatternError::WildcardBeforePath),
            ("spiffe://corp/build-*", UriPatternError::PartialSegment),
            ("spiffe://corp/***", UriPatternError::PartialSegment),
            ("spiffe://corp/**/x", UriPatternError::NotLast),
            ("spiffe://corp/**/", UriPatternError::NotLast),
        ] {
            assert_eq!(pattern.parse::<UriPattern>(), Err(error), "{pattern}");
        }
    }

    fn segments() -> impl Strategy<Value = Vec<String>> {
        proptest::collection::vec("[a-z0-9_-]{1,6}", 1..6)
    }

    fn uri(path: &[String]) -> String {
        format!("spiffe://corp/{}", path.join("/"))
    }

    proptest! {
        #[test]
        fn without_wildcards_a_pattern_is_one_uri(one in segments(), other in segments()) {
            let pattern: UriPattern = uri(&one).parse().unwrap();
            prop_assert!(pattern.matches(&uri(&one)));
            prop_assert_eq!(pattern.matches(&uri(&other)), one == other);
        }

        #[test]
        fn an_open_segment_takes_any_one_and_nothing_around_it(
            path in segments(),
            at in any::<prop::sample::Index>(),
            other in "[a-z0-9_-]{1,6}",
        ) {
            let index = at.index(path.len());
            let mut open = path.clone();
            open[index] = "*".to_owned();
            let pattern: UriPattern = uri(&open).parse().unwrap();
            let mut replaced = path.clone();
            replaced[index] = other.clone();
            prop_assert!(pattern.matches(&uri(&path)));
            prop_assert!(pattern.matches(&uri(&replaced)));
            let mut longer = path.clone();
            longer.insert(index, other);
            prop_assert!(!pattern.matches(&uri(&longer)));
            let mut shorter = path;
            shorter.remove(index);
            prop_assert!(!pattern.matches(&uri(&shorter)));
        }

        #[test]
        fn an_open_end_takes_what_begins_like_it_and_goes_on(
            path in segments(),
            rest in segments(),
            other in segments(),
        ) {
            let pattern: UriPattern = format!("{}/**", uri(&path)).parse().unwrap();
            prop_assert!(!pattern.matches(&uri(&path)));
            prop_assert!(pattern.matches(&uri(&[path.clone(), rest].concat())));
            let is_below = other.len() > path.len() && other.starts_with(&path);
            prop_assert_eq!(pattern.matches(&uri(&other)), is_below);
        }

        #[test]
        fn no_text_is_too_strange_to_be_compared(pattern in "\\PC{0,40}", text in "\\PC{0,40}") {
            let near = format!("spiffe://corp/{pattern}");
            for pattern in [pattern, near].iter().filter_map(|text| text.parse::<UriPattern>().ok()) {
                let _ = pattern.matches(&text);
                // What has no wildcard matches itself.
                let itself = pattern.to_string();
                prop_assert!(itself.contains('*') || pattern.matches(&itself));
            }
        }
    }
}
