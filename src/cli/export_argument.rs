//! `[NAME=]PATH[,key=value…]`: what to export, and how.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::cli::settings::AllowSettings;
use crate::snapshot::Stream;

/// One snapshot, or a directory of them, as it stands on the command line.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ExportArgument {
    pub(crate) name: Option<String>,
    pub(crate) path: PathBuf,
    pub(crate) description: Option<String>,
    pub(crate) size_from_index: bool,
    pub(crate) stream: Stream,
    pub(crate) as_raw: bool,
    /// Clients without TLS may read it, where others need TLS.
    pub(crate) plaintext: bool,
    /// Who may read it. On the command line there are only rules for all exports.
    pub(crate) allow: AllowSettings,
}

impl ExportArgument {
    pub(crate) fn of_path(path: impl Into<PathBuf>) -> Self {
        Self {
            name: None,
            path: path.into(),
            description: None,
            size_from_index: false,
            stream: Stream::Main,
            as_raw: false,
            plaintext: false,
            allow: AllowSettings::default(),
        }
    }

    /// Parses an argument. What is not UTF-8 is a path and nothing else.
    pub(crate) fn parse(argument: OsString) -> Result<Self, String> {
        let text = match argument.into_string() {
            Ok(text) => text,
            Err(path) => return Ok(Self::of_path(path)),
        };
        let mut fields = split_at_commas(&text).into_iter();
        let mut parsed = Self::of_path("");
        let what = fields.next().unwrap_or_default();
        match what.split_once('=') {
            // A name has no slash, so `./a=b.hxz` is a path.
            Some((name, path)) if !name.contains('/') => {
                parsed.name = Some(name.to_owned());
                parsed.path = path.into();
            }
            _ => parsed.path = what.into(),
        }
        if parsed.path.as_os_str().is_empty() {
            return Err("there is no path".to_owned());
        }
        if parsed.name.as_ref().is_some_and(String::is_empty) {
            return Err(
                "the name before `=` is empty; choose the default export with --default-export"
                    .to_owned(),
            );
        }
        for field in fields {
            parsed.set(&field)?;
        }
        Ok(parsed)
    }

    fn set(&mut self, field: &str) -> Result<(), String> {
        match field.split_once('=') {
            Some(("desc", text)) => self.description = Some(text.to_owned()),
            Some(("size", "index")) => self.size_from_index = true,
            Some(("stream", "main")) => self.stream = Stream::Main,
            Some(("stream", "aux")) => self.stream = Stream::Auxiliary,
            None if field == "as-raw" => self.as_raw = true,
            None if field == "plaintext" => self.plaintext = true,
            _ => {
                return Err(format!(
                    "unknown option `{field}`; there are desc=TEXT, size=index, stream=main, \
                     stream=aux, as-raw and plaintext (a comma inside a value is written twice)"
                ));
            }
        }
        Ok(())
    }
}

/// Splits at single commas; two commas stand for one.
fn split_at_commas(text: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character == ',' && characters.next_if_eq(&',').is_none() {
            fields.push(String::new());
        } else if let Some(field) = fields.last_mut() {
            field.push(character);
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ExportArgument, String> {
        ExportArgument::parse(text.into())
    }

    #[test]
    fn name_path_and_options_are_told_apart() {
        assert_eq!(parse("a/disk.hxz"), Ok(ExportArgument::of_path("a/disk.hxz")));
        assert_eq!(parse("./a=b.hxz"), Ok(ExportArgument::of_path("./a=b.hxz")));
        assert_eq!(
            parse("root=a/disk.hxz,desc=before,, after=x,size=index,stream=aux,as-raw,plaintext"),
            Ok(ExportArgument {
                name: Some("root".into()),
                path: "a/disk.hxz".into(),
                description: Some("before, after=x".into()),
                size_from_index: true,
                stream: Stream::Auxiliary,
                as_raw: true,
                plaintext: true,
                allow: AllowSettings::default(),
            })
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_choices() {
        for (text, part) in [
            ("", "no path"),
            ("name=", "no path"),
            ("=disk.hxz", "--default-export"),
            ("disk.hxz,", "unknown option ``"),
            ("disk.hxz,size=9", "size=index"),
            ("disk.hxz,as-raw=yes", "unknown option"),
            ("disk.hxz,stream=memory", "stream=aux"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
