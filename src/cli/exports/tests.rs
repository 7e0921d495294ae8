use super::*;
use crate::cli::reading::ReadingSettings;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// Opens all files of a directory. The exports, in the order of their names.
fn open(exports: &mut Exports, directory: &Path) -> Vec<Arc<Export>> {
    let arguments = [ExportArgument::of_path(directory)];
    let opened = exports.open_all(&arguments, &Settings::default()).unwrap();
    opened.catalogue.iter().cloned().collect()
}

#[test]
fn what_has_not_changed_stays_open_and_what_has_is_opened_anew() {
    let directory = tempfile::tempdir().unwrap();
    let put = |from: &str, name: &str| {
        std::fs::copy(fixture(from), directory.path().join("new")).unwrap();
        std::fs::rename(directory.path().join("new"), directory.path().join(name)).unwrap();
    };
    put("v082-onebyte.hxz", "a.hxz");
    put("v082-onebyte.hxz", "b.hxz");
    let mut exports = Exports::new(Arc::new(Cache::new(1 << 20)));
    let first = open(&mut exports, directory.path());
    put("v082-zstd.hxz", "b.hxz");
    put("v082-onebyte.hxz", "c.hxz");
    let second = open(&mut exports, directory.path());
    assert!(Arc::ptr_eq(&first[0], &second[0]));
    assert!(!Arc::ptr_eq(&first[1], &second[1]));
    assert_eq!((second[1].info().size_bytes, second.len()), (2_098_688, 3));
}

/// Whoever builds the next policy after one that failed starts from what is in force.
#[test]
fn what_is_open_is_kept_when_the_next_policy_fails() {
    let mut exports = Exports::new(Arc::new(Cache::new(1 << 20)));
    let good = ExportArgument::of_path(fixture("v082-onebyte.hxz"));
    let none = Settings::default();
    let only = |exports: &mut Exports| {
        let opened = exports.open_all(std::slice::from_ref(&good), &none).unwrap();
        Arc::clone(opened.catalogue.iter().next().unwrap())
    };
    let first = only(&mut exports);
    exports.open_all(&[good.clone(), good.clone()], &none).unwrap_err();
    assert!(Arc::ptr_eq(&first, &only(&mut exports)));
}

/// A cold cache for a new description would be a slow server for a while.
#[test]
fn exports_of_one_file_share_it_and_a_new_description_does_not_open_it_again() {
    let mut exports = Exports::new(Arc::new(Cache::new(1 << 20)));
    let parse = |options: &str| {
        let path = fixture("v082-lz4-aux.hxz");
        ExportArgument::parse(format!("{},{options}", path.display()).into()).unwrap()
    };
    let named = |name: &str, options: &str| ExportArgument {
        name: Some(name.to_owned()),
        ..parse(options)
    };
    let mut cached = |arguments: &[ExportArgument], warm: bool| -> Vec<bool> {
        let opened = exports.open_all(arguments, &Settings::default()).unwrap();
        let read = |export: &Arc<Export>| {
            if warm {
                export.read(0, 100).unwrap();
            }
            export.read_cached(0, 100).is_some()
        };
        opened.catalogue.iter().map(read).collect()
    };
    assert_eq!(cached(&[named("a", "plaintext")], false), [false, false]);
    assert_eq!(cached(&[named("a", "plaintext")], true), [true, true]);
    let changed = [named("a", "desc=new"), named("b", "size=512"), named("c", "stream=aux")];
    assert_eq!(cached(&changed, false), [true; 5]);
    // Its size is measured in another way, so it is another file.
    assert_eq!(cached(&[named("a", "size=index")], false), [false, false]);
}

/// Each attempt costs a tenth of a second or more, in which nobody else gets on.
#[test]
fn what_no_passphrase_opens_is_tried_again_when_something_has_changed() {
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("key");
    let write = |text: &str| {
        std::fs::write(directory.path().join("new"), text).unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(directory.path().join("new"), private).unwrap();
        std::fs::rename(directory.path().join("new"), &key).unwrap();
    };
    write("wrong");
    let settings = Settings {
        reading: ReadingSettings { key_file: vec![key.clone()], ..ReadingSettings::default() },
        ..Settings::default()
    };
    let arguments = ["v082-enc-lz4.hxz", "v082-onebyte.hxz"].map(fixture);
    let arguments = arguments.map(ExportArgument::of_path);
    let mut exports = Exports::new(Arc::new(Cache::new(1 << 20)));
    let mut open = || {
        let opened = exports.open_all(&arguments, &settings).unwrap();
        let locked = exports.open.locked.values().next();
        let message = locked.map(|locked| Arc::clone(&locked.message));
        (opened.catalogue.iter().count(), message)
    };
    let (served, message) = open();
    let message = message.unwrap();
    assert!(served == 1 && message.contains("the passphrase is wrong"), "{message}");
    let (served, again) = open();
    assert!(served == 1 && Arc::ptr_eq(&message, &again.unwrap()), "it was tried again");
    write("correct horse");
    assert_eq!(open(), (2, None));
}
