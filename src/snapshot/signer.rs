//! Who must have signed a snapshot before it is read.

use crate::snapshot::error::{Error, ErrorKind};
use crate::snapshot::format::FormatError;
use crate::snapshot::manifest::{self, Manifest, Root, Trust};
use crate::snapshot::open::OpenOptions;
use crate::snapshot::signature::{VerifyKey, verify_master_index};
use crate::snapshot::structure::Structure;

/// Who must have signed a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Signer {
    /// It does not matter.
    Anybody,
    /// The holder of one of these keys.
    Keys(Vec<VerifyKey>),
    /// Whoever signed a child of it, by this root.
    Root(Root),
}

impl Signer {
    /// As somebody asks for.
    pub(crate) fn of(options: &OpenOptions) -> Self {
        let keys = &options.verify_keys;
        if keys.is_empty() && !options.require_manifest {
            Self::Anybody
        } else {
            Self::Keys(keys.clone())
        }
    }

    /// Who must have signed a parent, by its number in the header of its child. Bytes of a parent
    /// are served like those of the child, so it has to be as good.
    pub(crate) fn of_parent(&self, child: &Structure, number: usize) -> Result<Self, Error> {
        let Some(manifest) = child.manifest() else {
            return Ok(self.clone());
        };
        let root = manifest.parent_roots().get(number).copied().ok_or_else(|| {
            let offset = child.header().index_offset;
            child.error(FormatError::Invalid { what: "number of parents", offset }.into())
        })?;
        Ok(Self::Root(root))
    }

    /// Checks what there is, a manifest before a signature of the master index.
    pub(crate) fn check(
        &self,
        structure: Structure,
        require_manifest: bool,
    ) -> Result<Structure, Error> {
        let (trust, keys) = match self {
            Self::Anybody => return Ok(structure),
            Self::Keys(keys) => (Trust::Keys(keys), keys.as_slice()),
            Self::Root(root) => (Trust::Root(*root), [].as_slice()),
        };
        let unsigned = |error| structure.error(ErrorKind::Manifest(Box::new(error)));
        let Some(manifest) = Manifest::beside(&structure).map_err(unsigned)? else {
            if require_manifest || matches!(self, Self::Root(_)) {
                let manifest = manifest::name_beside(&structure);
                return Err(structure.error(ErrorKind::NoManifest { manifest }));
            }
            return match verify_master_index(&structure, keys) {
                Ok(_) => Ok(structure),
                Err(error) => Err(structure.error(ErrorKind::Signature(Box::new(error)))),
            };
        };
        let checked = manifest.check(trust, &structure).map_err(unsigned)?;
        Ok(structure.signed(manifest, checked))
    }
}
