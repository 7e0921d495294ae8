//! `hexz-nbd certs revoke`: a certificate that is good no longer.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use rcgen::RevocationReason;
use time::OffsetDateTime;
use x509_parser::parse_x509_certificate;

use crate::cli::Failure;
use crate::cli::certs::client_name::ClientName;
use crate::cli::certs::directory::{self, CA_CRL};
use crate::cli::certs::files::Files;
use crate::cli::certs::report;
use crate::cli::escape::Escaped;
use crate::tls::issue::Authority;

/// Put a certificate on the revocation list of the CA.
///
/// A running server whose certificate lies beside the list, or that was given it with `--tls-crl`,
/// notices the change: it lets nobody in who shows the certificate, and cuts off who has.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Client that `certs client` made a certificate for, or a file that has the certificate
    #[arg(value_name = "NAME|FILE", required_unless_present = "serial", conflicts_with = "serial")]
    certificate: Option<PathBuf>,

    /// Serial number of a certificate whose file is lost, in hexadecimal
    #[arg(long, value_name = "HEX", value_parser = Serial::parse)]
    serial: Option<Serial>,

    /// Directory of the PKI
    #[arg(long = "dir", value_name = "DIR", default_value = "certs")]
    directory: PathBuf,

    /// Why, for whoever reads the list
    #[arg(long, value_enum, default_value_t = Reason::Unspecified)]
    reason: Reason,
}

/// Why a certificate is revoked. RFC 5280, section 5.3.1, without what is not for leaves.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Reason {
    Unspecified,
    KeyCompromise,
    AffiliationChanged,
    Superseded,
    CessationOfOperation,
    PrivilegeWithdrawn,
}

impl From<Reason> for RevocationReason {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Unspecified => Self::Unspecified,
            Reason::KeyCompromise => Self::KeyCompromise,
            Reason::AffiliationChanged => Self::AffiliationChanged,
            Reason::Superseded => Self::Superseded,
            Reason::CessationOfOperation => Self::CessationOfOperation,
            Reason::PrivilegeWithdrawn => Self::PrivilegeWithdrawn,
        }
    }
}

/// A serial number in big-endian bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Serial(Vec<u8>);

impl Serial {
    /// Digits as `certs show` and openssl print them, with colons between the bytes or without.
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || "a serial number is 1 to 40 hexadecimal digits".to_owned();
        let digits: Vec<u8> = text
            .chars()
            .filter(|c| *c != ':')
            .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
            .collect::<Option<_>>()
            .ok_or_else(wrong)?;
        if digits.is_empty() || digits.len() > 40 {
            return Err(wrong());
        }
        // Pairs from the end: an odd number of digits lacks the first.
        let mut bytes: Vec<u8> = digits
            .rchunks(2)
            .map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit))
            .collect();
        bytes.reverse();
        Ok(Self(bytes))
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let directory = &arguments.directory;
    let now = OffsetDateTime::now_utc();
    let authority = directory::authority(directory, now)?;
    // Two at the same time would each keep what the other adds from the list. Released at the end.
    let lock = File::open(directory)?;
    lock.lock()?;
    let (serial, what) = match (&arguments.serial, &arguments.certificate) {
        (Some(Serial(bytes)), _) => (bytes.clone(), format!("serial {}", report::hex(bytes))),
        (None, Some(certificate)) => find(certificate, directory, &authority)?,
        (None, None) => return Err(Failure::Usage("which certificate?".to_owned())),
    };

    let path = directory.join(CA_CRL);
    let list = directory::revocation_list(directory, &authority)?;
    let is_new = list.is_none();
    let mut list = list.unwrap_or_default();
    let mut out = io::stdout().lock();
    let shown = path.to_string_lossy();
    if let Some(at) = list.revoked_at(&serial) {
        writeln!(
            out,
            "{} was revoked at {} already; {} is unchanged",
            Escaped(&what),
            report::date(at),
            Escaped(&shown)
        )?;
        return Ok(());
    }
    list.add(&serial, now, arguments.reason.into());
    let mut files = Files::default();
    files.public(path.clone(), list.sign(&authority, now)?);
    // It is there to be replaced, if it is there.
    files.write(!is_new)?;
    writeln!(
        out,
        "revoked {}; {} {} lists {}",
        Escaped(&what),
        if is_new { "the new list" } else { "the list" },
        Escaped(&shown),
        list.len()
    )?;
    writeln!(out, "a running server notices the change, if the list lies beside its certificate")?;
    Ok(())
}

/// The serial number of a certificate, and how to speak of it.
fn find(
    certificate: &Path,
    directory: &Path,
    authority: &Authority,
) -> Result<(Vec<u8>, String), Failure> {
    let name = certificate.to_str().and_then(|text| ClientName::parse(text).ok());
    let path = match &name {
        Some(name) => directory::client_certificate(directory, name).ok_or_else(|| {
            Failure::failed(format!(
                "there is no client {} in {}: {} does not exist",
                name.as_str(),
                directory.display(),
                directory.join(name.bundle()).display()
            ))
        })?,
        None => certificate.to_owned(),
    };
    let leaf = directory::leaf(&path)?;
    let genuine = parse_x509_certificate(&leaf.der)
        .is_ok_and(|(_, certificate)| authority.has_issued(&certificate));
    if !genuine {
        return Err(Failure::failed(format!(
            "the certificate in {} is not of the CA in {}, which cannot revoke it",
            path.display(),
            directory.display()
        )));
    }
    let serial = report::hex(&leaf.serial);
    let what = match name {
        Some(name) => format!("{} (serial {serial})", name.as_str()),
        None => format!("{} (serial {serial})", path.display()),
    };
    Ok((leaf.serial, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_number_is_read_as_tools_print_it() {
        for (text, bytes) in [
            ("1", &[1][..]),
            ("0F", &[15]),
            ("4f:0a:ff", &[0x4f, 0x0a, 0xff]),
            ("abc", &[0x0a, 0xbc]),
        ] {
            assert_eq!(Serial::parse(text), Ok(Serial(bytes.into())), "{text}");
        }
        for text in ["", ":", "xyz", "0x12", "-1", "1 2", &"1".repeat(41)] {
            assert!(Serial::parse(text).is_err(), "{text}");
        }
    }
}
