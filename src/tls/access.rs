//! Files with secrets: read in one piece, with who else may read them.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fs::{File, Metadata, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use zeroize::Zeroizing;

use crate::tls::pem::FileErrorKind;

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Permissions of owner, group and others.
    pub mode: u32,
    /// Number of its owner.
    pub user: u32,
}

impl Access {
    fn of(metadata: &Metadata) -> Self {
        Self { mode: metadata.mode() & 0o7777, user: metadata.uid() }
    }

    /// Whether others than the owner can read or change the file.
    #[must_use]
    pub fn is_exposed(self) -> bool {
        self.mode & 0o077 != 0
    }

    /// Whether the file looks as service managers leave a credential: owned by root, and opened for
    /// reading to one group besides. With systemd, the mode of the group is the mask of an access list
    /// that names the user of the service (`fd_add_uid_acl_permission` in its `exec-credential.c`).
    /// With Kubernetes, the group is the `fsGroup` of the pod (`SetVolumeOwnership` of the kubelet).
    #[must_use]
    pub fn is_credential(self) -> bool {
        self.mode & 0o077 == 0o040 && self.user == 0
    }
}

/// Reads a regular file of at most so many bytes, into memory that is wiped when it is dropped.
///
/// # Errors
///
/// [`FileErrorKind`] if it cannot be read, is no regular file, or is larger.
pub fn read(file: &Path, bytes_max: u64) -> Result<(Zeroizing<Vec<u8>>, Access), FileErrorKind> {
    // Without O_NONBLOCK, opening a pipe waits for a writer that may never come.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let open = OpenOptions::new().read(true).custom_flags(flags).open(file);
    let open: File = open.map_err(FileErrorKind::Open)?;
    let metadata = open.metadata().map_err(FileErrorKind::Open)?;
    if !metadata.is_file() {
        return Err(FileErrorKind::NotAFile);
    }
    // Room for all of it, so that no part is left behind where a buffer was that grew.
    let room = metadata.len().min(bytes_max).saturating_add(1);
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(room).unwrap_or(0)));
    // One byte more, to notice that there is one. The file may grow while it is read.
    let mut bounded = open.take(bytes_max.saturating_add(1));
    bounded.read_to_end(&mut bytes).map_err(FileErrorKind::Read)?;
    if bounded.limit() == 0 {
        return Err(FileErrorKind::TooLarge { bytes_max });
    }
    Ok((bytes, Access::of(&metadata)))
}
