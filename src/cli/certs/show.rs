//! `hexz-nbd certs show`: what a certificate says, and whether it still holds.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use time::OffsetDateTime;

use crate::cli::certs::directory;
use crate::cli::certs::report::{CertificateReport, Report, RevocationListReport, Status};
use crate::cli::escape::Escaped;
use crate::cli::{Failure, duration};

const DAY_SECONDS: i64 = 24 * 60 * 60;

/// Show certificates and revocation lists, and whether they have expired.
///
/// A file may hold several, and keys, of which nothing is shown. The exit code is 1 if anything has
/// expired, or expires within the time given.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// File with certificates or revocation lists in PEM
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,

    /// Also fail if something expires within this time, such as 30d or 12h
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    expires_within: Option<Duration>,

    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// A block and where it is.
#[derive(Serialize)]
struct Shown {
    file: String,
    #[serde(flatten)]
    report: Report,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let now = OffsetDateTime::now_utc();
    let mut shown = Vec::new();
    for path in &arguments.files {
        shown.extend(read(path, now, arguments.expires_within)?);
    }
    let mut out = io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &shown)?;
        writeln!(out)?;
    } else {
        for (index, block) in shown.iter().enumerate() {
            if index != 0 {
                writeln!(out)?;
            }
            block.write(&mut out)?;
        }
    }
    out.flush()?;
    failure(&shown).map_or(Ok(()), |message| Err(Failure::failed(message)))
}

fn read(path: &Path, now: OffsetDateTime, soon: Option<Duration>) -> Result<Vec<Shown>, Failure> {
    let file = path.to_string_lossy().into_owned();
    let pem = directory::read(path)?;
    let broken = |what: &str| Failure::failed(format!("{file}: the {what} cannot be parsed"));
    let mut reports: Vec<_> = pem.keys.iter().map(|_| Report::PrivateKey).collect();
    for der in &pem.certificates {
        let report = Report::certificate(der, now, soon);
        reports.push(report.ok_or_else(|| broken("certificate"))?);
    }
    for der in &pem.crls {
        let report = Report::revocation_list(der, now, soon);
        reports.push(report.ok_or_else(|| broken("revocation list"))?);
    }
    if reports.is_empty() {
        return Err(Failure::failed(format!("{file} holds nothing that could be shown")));
    }
    Ok(reports.into_iter().map(|report| Shown { file: file.clone(), report }).collect())
}

/// What has expired or soon will, if anything.
fn failure(shown: &[Shown]) -> Option<String> {
    let reports = shown.iter().filter_map(|shown| {
        let (status, name) = shown.report.status()?;
        let what = match status {
            Status::Valid | Status::NotYetValid => return None,
            Status::Expired => "has expired",
            Status::ExpiresSoon => "expires soon",
        };
        Some(format!("{}: {name} {what}", shown.file))
    });
    let reports: Vec<_> = reports.collect();
    if reports.is_empty() { None } else { Some(reports.join("; ")) }
}

impl Shown {
    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let file = Escaped(&self.file);
        match &self.report {
            Report::Certificate(certificate) => {
                writeln!(out, "{file}: certificate")?;
                write_certificate(certificate, out)
            }
            Report::RevocationList(list) => {
                writeln!(out, "{file}: revocation list")?;
                write_revocation_list(list, out)
            }
            Report::PrivateKey => writeln!(out, "{file}: private key, not shown"),
        }
    }
}

/// One line. What comes from the file is escaped here.
fn line(out: &mut impl Write, name: &str, value: &str) -> io::Result<()> {
    writeln!(out, "  {:<13} {}", format!("{name}:"), Escaped(value))
}

fn write_certificate(certificate: &CertificateReport, out: &mut impl Write) -> io::Result<()> {
    line(out, "subject", &certificate.subject)?;
    line(out, "issuer", &certificate.issuer)?;
    if !certificate.names.is_empty() {
        line(out, "names", &certificate.names.join(", "))?;
    }
    match certificate.purposes.as_slice() {
        [] => line(out, "purpose", "not said, so any but CA")?,
        purposes => line(out, "purpose", &purposes.join(", "))?,
    }
    if let Some(usage) = &certificate.key_usage {
        line(out, "key usage", usage)?;
    }
    line(out, "serial", &certificate.serial)?;
    line(out, "fingerprint", &certificate.fingerprint)?;
    line(out, "valid from", &certificate.not_before)?;
    let left = remaining(certificate.status, Some(certificate.seconds_left));
    line(out, "valid until", &format!("{}, {left}", certificate.not_after))?;
    match certificate.version {
        1 => line(
            out,
            "version",
            "1, which hexz-nbd refuses: `openssl x509 -req` makes it unless it is given an \
             -extfile; `hexz-nbd certs` makes version 3",
        ),
        version => line(out, "version", &version.to_string()),
    }
}

fn write_revocation_list(list: &RevocationListReport, out: &mut impl Write) -> io::Result<()> {
    line(out, "issuer", &list.issuer)?;
    line(out, "number", list.number.as_deref().unwrap_or("none"))?;
    line(out, "made", &list.this_update)?;
    match &list.next_update {
        None => line(out, "next update", "none, so it never expires")?,
        Some(update) => {
            let left = remaining(list.status, list.seconds_left);
            line(out, "next update", &format!("{update}, {left}"))?;
        }
    }
    line(out, "revoked", &list.revoked.len().to_string())?;
    for entry in &list.revoked {
        let reason = entry.reason.as_ref().map(|reason| format!(", {reason}")).unwrap_or_default();
        writeln!(out, "    {} at {}{}", entry.serial, entry.at, Escaped(&reason))?;
    }
    Ok(())
}

fn remaining(status: Status, seconds_left: Option<i64>) -> String {
    let days = seconds_left.unwrap_or_default() / DAY_SECONDS;
    match status {
        Status::Expired => format!("expired {} days ago", days.saturating_neg()),
        Status::NotYetValid => "not valid yet".to_owned(),
        Status::Valid | Status::ExpiresSoon => format!("{days} days left"),
    }
}
