//! Name to export, and what one client may see.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::export::{Export, ExportSettings};
use crate::nbd::limits::NAME_BYTES_MAX;
use crate::nbd::{Absent, ExportDirectory, Listing};
use crate::snapshot::{File, Stream};

/// All exports of a server, in the order in which they were added.
#[derive(Debug, Default)]
pub struct Catalogue {
    exports: Vec<Arc<Export>>,
    places: BTreeMap<String, Place>,
    /// What has been chosen.
    default_name: Option<String>,
    /// Names that were asked for by name, not those that came along with another.
    primary: Vec<String>,
    /// Names that are not served any more, to whose clients that is no reason to go.
    removed: BTreeSet<String>,
}

/// What is behind a name.
#[derive(Debug, Clone, Copy)]
enum Place {
    Open(usize),
    Broken,
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
        let name = export.info().name.clone();
        Self {
            places: BTreeMap::from([(name.clone(), Place::Open(0))]),
            exports: vec![export],
            primary: vec![name],
            ..Self::default()
        }
    }

    /// Adds an export.
    ///
    /// # Errors
    ///
    /// [`CatalogueError`] if its name is taken or impossible.
    pub fn add(&mut self, export: Arc<Export>) -> Result<(), CatalogueError> {
        let name = export.info().name.clone();
        self.add_beside(export)?;
        self.primary.push(name);
        Ok(())
    }

    /// Adds an export that comes along with another one: it is never the only one.
    ///
    /// # Errors
    ///
    /// As [`Catalogue::add`].
    pub fn add_beside(&mut self, export: Arc<Export>) -> Result<(), CatalogueError> {
        let name = export.info().name.clone();
        self.place(name, Place::Open(self.exports.len()))?;
        self.exports.push(export);
        Ok(())
    }

    /// Adds the name of an export that cannot be opened. It is not listed, and whoever asks for it
    /// hears that it is broken.
    ///
    /// # Errors
    ///
    /// As [`Catalogue::add`].
    pub fn add_broken(&mut self, name: &str) -> Result<(), CatalogueError> {
        self.place(name.to_owned(), Place::Broken)?;
        self.primary.push(name.to_owned());
        Ok(())
    }

    /// Remembers a name that is not served any more, but whose clients may keep what they have
    /// open.
    pub fn add_removed(&mut self, name: &str) {
        self.removed.insert(name.to_owned());
    }

    fn place(&mut self, name: String, place: Place) -> Result<(), CatalogueError> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(char::is_control) {
            return Err(CatalogueError::BadName(name));
        }
        if self.places.contains_key(&name) {
            return Err(CatalogueError::Duplicate(name));
        }
        self.places.insert(name, place);
        Ok(())
    }

    /// Chooses the export that clients get who ask for the empty name. Without a choice a single
    /// export is it.
    ///
    /// # Errors
    ///
    /// [`CatalogueError::NoDefault`] if there is no export of that name.
    pub fn set_default(&mut self, name: &str) -> Result<(), CatalogueError> {
        if !self.places.contains_key(name) {
            return Err(CatalogueError::NoDefault(name.to_owned()));
        }
        self.default_name = Some(name.to_owned());
        Ok(())
    }

    /// As [`Catalogue::set_default`], if it does not exist yet: until it does there is none.
    pub fn expect_default(&mut self, name: &str) {
        self.default_name = Some(name.to_owned());
    }

    /// The export of that name, or the default one for the empty name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Export>> {
        match self.places.get(self.full_name(name)?)? {
            Place::Open(place) => self.exports.get(*place),
            Place::Broken => None,
        }
    }

    /// Whether there is an export of that name for clients who come now, open or broken.
    #[must_use]
    pub fn offers(&self, name: &str) -> bool {
        self.full_name(name).is_some_and(|name| self.places.contains_key(name))
    }

    /// Whether clients who have an export of that name open may keep it.
    #[must_use]
    pub fn keeps(&self, name: &str) -> bool {
        self.offers(name) || self.removed.contains(name)
    }

    /// What the empty name stands for, and every other name for itself.
    fn full_name<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        match (&self.default_name, &*self.primary) {
            _ if !name.is_empty() => Some(name),
            (Some(name), _) => Some(name),
            (None, [single]) => Some(single),
            (None, _) => None,
        }
    }

    /// All exports that are open, in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Export>> {
        self.exports.iter()
    }

    /// Names whose snapshot cannot be opened, sorted.
    pub fn broken(&self) -> impl Iterator<Item = &str> {
        let broken = self.places.iter().filter(|(_, place)| matches!(place, Place::Broken));
        broken.map(|(name, _)| name.as_str())
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

    fn find(&self, name: &str) -> Result<Arc<Export>, Absent> {
        let catalogue = &self.catalogue;
        let name = catalogue.full_name(name).filter(|name| catalogue.offers(name));
        let name = name.filter(|name| (self.may_see)(name)).ok_or(Absent::Unknown)?;
        catalogue.get(name).map(Arc::clone).ok_or(Absent::Broken)
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
        assert_eq!(listed(&all), ["b", "a", "c"]);
        let some = View::new(exports, |name: &str| name != "c");
        assert_eq!(listed(&some), ["b", "a"]);
        assert!(some.find("a").is_ok());
        for hidden in ["c", "", "made up"] {
            assert_eq!(some.find(hidden).unwrap_err(), Absent::Unknown, "{hidden}");
        }
    }

    #[test]
    fn a_broken_export_is_not_listed_and_only_who_may_see_it_hears_of_it() {
        let mut exports = catalogue(&["a"]);
        exports.add_broken("b").unwrap();
        assert_eq!(exports.add_broken("a"), Err(CatalogueError::Duplicate("a".into())));
        assert_eq!(exports.add(export("b")), Err(CatalogueError::Duplicate("b".into())));
        // What the only export is does not depend on which can be opened.
        assert!(!exports.offers(""));
        exports.set_default("b").unwrap();
        let exports = Arc::new(exports);
        let all = View::new(Arc::clone(&exports), |_: &str| true);
        assert_eq!(all.list().len(), 1);
        for name in ["b", ""] {
            assert_eq!(all.find(name).unwrap_err(), Absent::Broken, "{name}");
        }
        let some = View::new(exports, |name: &str| name != "b");
        for name in ["b", ""] {
            assert_eq!(some.find(name).unwrap_err(), Absent::Unknown, "{name}");
        }
    }

    #[test]
    fn what_comes_along_with_the_only_export_does_not_take_its_place() {
        let mut exports = catalogue(&["disk"]);
        exports.add_beside(export("disk/aux")).unwrap();
        assert_eq!(exports.get("").unwrap().info().name, "disk");
        assert_eq!(exports.get("disk/aux").unwrap().info().name, "disk/aux");
        exports.add(export("other")).unwrap();
        assert!(exports.get("").is_none());
    }

    #[test]
    fn a_removed_name_is_kept_by_those_who_have_it_and_given_to_nobody() {
        let mut exports = catalogue(&["a"]);
        exports.add_removed("b");
        assert!(exports.keeps("a") && exports.offers("a"));
        assert!(exports.keeps("b") && !exports.offers("b"));
        assert!(!exports.keeps("c"));
        let exports = View::new(Arc::new(exports), |_: &str| true);
        assert_eq!(exports.find("b").unwrap_err(), Absent::Unknown);
    }

    #[test]
    fn a_default_that_is_expected_is_none_until_it_is_there() {
        let mut exports = catalogue(&["a"]);
        exports.expect_default("b");
        assert!(!exports.offers("") && exports.get("").is_none());
        exports.add(export("b")).unwrap();
        assert_eq!(exports.get("").unwrap().info().name, "b");
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
