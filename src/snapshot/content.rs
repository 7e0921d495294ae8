//! What was packed: a disk image, or something that is not a block device. Format section 13.

use std::fmt;

use serde::Deserialize;
use serde::de::IgnoredAny;

/// What the main stream of a snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Content {
    /// The bytes of a file, a disk image as far as anybody can tell.
    Image,
    /// As [`Content::Image`], packed from a block device or a pipe: upstream's tools then record
    /// the size 0, and only the index knows how many bytes there are.
    ImageWithoutSize,
    /// The files of a directory, one after another.
    Directory,
    /// The files of a tar archive, without their headers.
    Tar,
    /// Tensors of a model, perhaps as differences to another one.
    Safetensors,
}

impl Content {
    /// Recognises what the metadata of a snapshot describes. Anything that is not one of the
    /// known JSON objects is the message of a commit, and commits are images.
    pub(crate) fn from_metadata(metadata: &[u8]) -> Self {
        let Some(known) = Known::parse(metadata) else {
            return Self::Image;
        };
        let source = known.source.and_then(|source| source.format);
        match (source.as_deref(), known.format.as_deref(), known.files) {
            (Some("tar"), _, _) => Self::Tar,
            (_, Some("safetensors"), _) => Self::Safetensors,
            (_, _, Some(_)) => Self::Directory,
            _ => Self::Image,
        }
    }
}

/// Bytes of all files of a converted tar archive, which is what its blocks hold. The declared
/// size of the stream is that of the tar file, so only this can be compared with the index.
pub(crate) fn tar_bytes(metadata: &[u8]) -> Option<u64> {
    Known::parse(metadata)?.source?.total_bytes
}

#[derive(Deserialize)]
struct Known {
    files: Option<IgnoredAny>,
    source: Option<Source>,
    format: Option<String>,
}

#[derive(Deserialize)]
struct Source {
    format: Option<String>,
    total_bytes: Option<u64>,
}

impl Known {
    fn parse(metadata: &[u8]) -> Option<Self> {
        // Free text is not worth parsing to its end.
        if metadata.trim_ascii_start().first() != Some(&b'{') {
            return None;
        }
        serde_json::from_slice(metadata).ok()
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Image => "image",
            Self::ImageWithoutSize => "image without a recorded size",
            Self::Directory => "archive of a directory",
            Self::Tar => "converted tar archive",
            Self::Safetensors => "safetensors model",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_known_by_their_metadata_and_messages_are_not_taken_for_them() {
        for (metadata, content) in [
            (&b""[..], Content::Image),
            (b"before the upgrade", Content::Image),
            (b"{not json", Content::Image),
            (br#"{"note": 1}"#, Content::Image),
            (br#"{"files": [{"path": "a"}]}"#, Content::Directory),
            (br#" {"files": [], "source": {"format": "tar"}}"#, Content::Tar),
            (br#"{"format": "safetensors", "tensors": {}}"#, Content::Safetensors),
        ] {
            assert_eq!(Content::from_metadata(metadata), content);
        }
    }

    #[test]
    fn a_converted_archive_says_how_many_bytes_its_files_have() {
        let tar = br#"{"source": {"format": "tar", "total_bytes": 378000, "source_files": []}}"#;
        assert_eq!(tar_bytes(tar), Some(378_000));
        assert_eq!(tar_bytes(br#"{"source": {"format": "tar"}}"#), None);
        assert_eq!(tar_bytes(b"a message"), None);
    }
}
