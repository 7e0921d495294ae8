//! Name to export, and what one client may see.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::export::{Export, ExportSettings};
use crate::nbd::limits::NAME_BYTES_MAX;
use crate::nbd::{ExportDirectory, Listing};
use crate::snapshot::{File, Stream};

/// All exports of a server, in the order of their names.
#[derive(Debug, Default)]
pub struct Catalogue {
    exports: BTreeMap<String, Arc<Export>>,
    default_name: Option<String>,
}

/// Why an export cannot have its name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogueError {
    /// Two exports of one name.
    #[error("there are two exports named {0:?}; name one of them with `NAME=PATH`")]
    Duplicate(String),
    /// A name that cannot be sent to clients or typed by people.
    #[error(
        "an export cannot be named {0:?}: a name has 1 to {NAME_BYTES_MAX} bytes and no control \
         characters"
    )]
    BadName(String),
    /// The default export does not exist.
    #[error("the default export {0:?} is not among the exports")]
    NoDefault(String),
}

impl Catalogue {
    /// The main stream of one snapshot, whatever it holds, as the default export.
    #[must_use]
    pub fn of_one(file: Arc<File>) -> Self {
        let name = "snapshot".to_owned();
        let settings =
            ExportSettings { name, description: None, stream: Stream::Main, as_raw: true };
        let export = Arc::new(Export::unchecked(file, settings));
        Self { exports: BTreeMap::from([(export.info().name.clone(), export)]), default_name: None }
    }

    /// Adds an export.
    ///
    /// # Errors
    ///
    /// [`CatalogueError`] if its name is taken or impossible.
    pub fn add(&mut self, export: Arc<Export>) -> Result<(), CatalogueError> {
        let name = export.info().name.clone();
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(char::is_control) {
            return Err(CatalogueError::BadName(name));
        }
        if self.exports.contains_key(&name) {
            return Err(CatalogueError::Duplicate(name));
        }
        self.exports.insert(name, export);
        Ok(())
    }

    /// Chooses the export that clients get who ask for the empty name. Without a choice a single
    /// export is it.
    ///
    /// # Errors
    ///
    /// [`CatalogueError::NoDefault`] if there is no export of that name.
    pub fn set_default(&mut self, name: &str) -> Result<(), CatalogueError> {
        if !self.exports.contains_key(name) {
            return Err(CatalogueError::NoDefault(name.to_owned()));
        }
        self.default_name = Some(name.to_owned());
        Ok(())
    }

    /// The export of that name, or the default one for the empty name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Export>> {
        if !name.is_empty() {
            return self.exports.get(name);
        }
        match &self.default_name {
            Some(name) => self.exports.get(name),
            None if self.exports.len() == 1 => self.exports.values().next(),
            None => None,
        }
    }

    /// All exports, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Export>> {
        self.exports.values()
    }

    /// Whether there is nothing to export.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.exports.is_empty()
    }
}

/// A catalogue as one client sees it. What it may not see does not exist for it.
#[derive(Debug, Clone)]
pub struct View<F> {
    catalogue: Arc<Catalogue>,
    may_see: F,
}

impl<F: Fn(&str) -> bool> View<F> {
    /// `may_see` is asked with the name of an export.
    pub fn new(catalogue: Arc<Catalogue>, may_see: F) -> Self {
        Self { catalogue, may_see }
    }
}

impl<F: Fn(&str) -> bool> ExportDirectory for View<F> {
    type Export = Arc<Export>;

    fn list(&self) -> Vec<Listing> {
        let seen = self.catalogue.iter().filter(|export| (self.may_see)(&export.info().name));
        seen.map(|export| Listing {
            name: export.info().name.clone(),
            description: export.info().description.clone(),
        })
        .collect()
    }

    fn find(&self, name: &str) -> Option<Arc<Export>> {
        let export = self.catalogue.get(name)?;
        (self.may_see)(&export.info().name).then(|| Arc::clone(export))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalogue(names: &[&str]) -> Catalogue {
        let mut catalogue = Catalogue::default();
        for name in names {
            catalogue.add(export(name)).unwrap();
        }
        catalogue
    }

    fn export(name: &str) -> Arc<Export> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/v082-onebyte.hxz");
        let name = name.to_owned();
        let settings =
            ExportSettings { name, description: None, stream: Stream::Main, as_raw: false };
        Arc::new(Export::new(File::open(path).unwrap(), settings).unwrap())
    }

    #[test]
    fn a_single_export_is_the_default_and_several_need_a_choice() {
        assert!(catalogue(&["a"]).get("").is_some());
        let mut two = catalogue(&["b", "a"]);
        assert!(two.get("").is_none());
        assert_eq!(two.set_default("c"), Err(CatalogueError::NoDefault("c".into())));
        two.set_default("b").unwrap();
        assert_eq!(two.get("").unwrap().info().name, "b");
    }

    #[test]
    fn what_a_client_may_not_see_does_not_exist_for_it() {
        let mut exports = catalogue(&["b", "a", "c"]);
        exports.set_default("c").unwrap();
        let exports = Arc::new(exports);
        let listed = |view: &dyn ExportDirectory<Export = Arc<Export>>| -> Vec<String> {
            view.list().into_iter().map(|listing| listing.name).collect()
        };
        let all = View::new(Arc::clone(&exports), |_: &str| true);
        assert_eq!(listed(&all), ["a", "b", "c"]);
        let some = View::new(exports, |name: &str| name != "c");
        assert_eq!(listed(&some), ["a", "b"]);
        assert!(some.find("a").is_some());
        assert!(some.find("c").is_none() && some.find("").is_none());
    }

    #[test]
    fn a_name_is_used_once_and_can_be_typed() {
        let mut catalogue = catalogue(&["disk"]);
        assert_eq!(catalogue.add(export("disk")), Err(CatalogueError::Duplicate("disk".into())));
        let too_long = "x".repeat(NAME_BYTES_MAX + 1);
        for name in ["", "a\nb", "\x1b[2J", &too_long] {
            assert!(matches!(catalogue.add(export(name)), Err(CatalogueError::BadName(_))));
        }
    }
}
