//! What is recorded, in the form in which it is written. docs/audit.md describes it for readers.

use std::time::SystemTime;

use serde::{Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The version of the schema. What is only added does not change it.
const SCHEMA: u32 = 1;

/// Something that happened.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    schema: u32,
    #[serde(serialize_with = "as_rfc3339")]
    time: SystemTime,
    /// Of the process, which tells the connections of one apart from those of another.
    pid: u32,
    #[serde(flatten)]
    kind: EventKind,
    #[serde(flatten)]
    who: Option<Who>,
}

/// Which client.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Who {
    /// The name of the connection in the log and in the metrics. `None` for one that was turned
    /// away before it had one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<String>,
    /// Address and port, or `unix`.
    pub peer: String,
    /// What its certificate says, if it has shown one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// How the connection is protected, if it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

/// Whom a certificate names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// Common name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub common_name: Option<String>,
    /// Organizational units.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub organizational_units: Vec<String>,
    /// DNS names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns_names: Vec<String>,
    /// URIs, such as a SPIFFE ID.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub uris: Vec<String>,
    /// SHA-256 of the certificate, in hexadecimal digits.
    pub fingerprint: String,
}

/// How a connection is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Tls {
    /// Such as `TLSv1_3`.
    pub version: &'static str,
    /// As IANA names it.
    pub cipher_suite: &'static str,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// The server began.
    Start {
        /// Of the program.
        version: &'static str,
    },
    /// A client came.
    Connect,
    /// A client was not given what it came for.
    Refuse {
        /// The export that it asked for, if it came that far.
        #[serde(skip_serializing_if = "Option::is_none")]
        export: Option<String>,
        /// One word, the same as in the metrics.
        reason: &'static str,
        /// The same for people.
        detail: String,
    },
    /// A client may read an export.
    Open {
        /// Which one.
        export: String,
    },
    /// A client is gone.
    Disconnect {
        /// What it read, if anything was opened.
        #[serde(skip_serializing_if = "Option::is_none")]
        export: Option<String>,
        /// Number of reads that were accepted.
        reads: u64,
        /// Bytes of all of them together.
        read_bytes: u64,
        /// How long it was here.
        seconds: f64,
        /// How often it was refused something.
        refusals: u32,
        /// How it ended, in words.
        ending: String,
    },
    /// Lines before this one are missing.
    Lost {
        /// How many.
        lines: u64,
        /// Why the last of them could not be written.
        reason: String,
    },
    /// The server ended.
    Stop,
}

impl Event {
    /// Now, to nobody in particular.
    #[must_use]
    pub fn new(kind: EventKind) -> Self {
        let (time, pid) = (SystemTime::now(), std::process::id());
        Self { schema: SCHEMA, time, pid, kind, who: None }
    }

    /// Now, to a client.
    #[must_use]
    pub fn of(who: Who, kind: EventKind) -> Self {
        Self { who: Some(who), ..Self::new(kind) }
    }

    /// Its name in the schema.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self.kind {
            EventKind::Start { .. } => "start",
            EventKind::Connect => "connect",
            EventKind::Refuse { .. } => "refuse",
            EventKind::Open { .. } => "open",
            EventKind::Disconnect { .. } => "disconnect",
            EventKind::Lost { .. } => "lost",
            EventKind::Stop => "stop",
        }
    }

    /// The client's connection, if there is one.
    #[must_use]
    pub fn connection(&self) -> Option<&str> {
        self.who.as_ref()?.connection.as_deref()
    }

    /// One line of JSON without its end. What JSON leaves as it is, but terminals and readers of
    /// lines do not (DEL, C1 controls, line separators, marks that turn the direction of text), is
    /// escaped too, so that no name can forge a line or hide in one.
    #[must_use]
    pub fn to_line(&self) -> String {
        let json = serde_json::to_string(self).unwrap_or_default();
        if !json.contains(is_deceptive) {
            return json;
        }
        let mut line = String::with_capacity(json.len().saturating_add(32));
        for character in json.chars() {
            if is_deceptive(character) {
                // All of them are in the basic plane; an escape is legal wherever they are, which is
                // within strings only.
                line.push_str(&format!("\\u{:04x}", u32::from(character)));
            } else {
                line.push(character);
            }
        }
        line
    }
}

fn is_deceptive(character: char) -> bool {
    matches!(
        character,
        '\u{7f}'..='\u{9f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
    )
}

fn as_rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let time = OffsetDateTime::from(*time);
    serializer.serialize_str(&time.format(&Rfc3339).map_err(serde::ser::Error::custom)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    use serde_json::{Value, json};

    #[test]
    fn a_line_has_what_is_known_and_leaves_out_what_is_not() {
        let who = Who {
            connection: Some("c7".into()),
            peer: "192.0.2.1:5".into(),
            identity: Some(Identity {
                common_name: Some("alice".into()),
                fingerprint: "00ff".into(),
                ..Identity::default()
            }),
            tls: Some(Tls { version: "TLSv1_3", cipher_suite: "TLS13_AES_256_GCM_SHA384" }),
        };
        let line = Event::of(who, EventKind::Open { export: "disk".into() }).to_line();
        let mut parsed: Value = serde_json::from_str(&line).unwrap();
        let time = parsed.as_object_mut().unwrap().remove("time").unwrap();
        OffsetDateTime::parse(time.as_str().unwrap(), &Rfc3339).unwrap();
        assert_eq!(parsed.as_object_mut().unwrap().remove("pid").unwrap(), std::process::id());
        assert_eq!(
            parsed,
            json!({
                "schema": 1, "event": "open", "export": "disk", "connection": "c7",
                "peer": "192.0.2.1:5",
                "identity": {"common_name": "alice", "fingerprint": "00ff"},
                "tls": {"version": "TLSv1_3", "cipher_suite": "TLS13_AES_256_GCM_SHA384"},
            })
        );
        let parsed: Value = serde_json::from_str(&Event::new(EventKind::Stop).to_line()).unwrap();
        assert_eq!(parsed.as_object().unwrap().len(), 4, "{parsed}");
    }

    #[test]
    fn no_name_forges_a_line_or_turns_the_direction_of_one() {
        let export = "a\n{\"event\":\"open\"}\u{1b}[2J\u{7f}\u{85}\u{2028}\u{202e}gnp\u{feff}ü";
        let line = Event::new(EventKind::Open { export: export.into() }).to_line();
        assert!(line.chars().all(|c| !c.is_control() && !is_deceptive(c)), "{line:?}");
        let parsed: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(parsed["export"], export);
    }
}
