//! What to type on a client.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use crate::cli::escape::Escaped;
use crate::cli::uri;
use crate::tls::issue::Host;

/// The port that is registered for NBD.
const PORT: u16 = 10809;

/// A server, as clients reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    host: Host,
    port: u16,
}

/// Where the client's files are, absolute: nbd-client goes to the background, and to `/`.
pub(crate) struct ClientFiles {
    /// Key, certificate and CA in one file.
    pub(crate) bundle: PathBuf,
    /// The three of them on their own.
    pub(crate) directory: PathBuf,
}

impl Target {
    pub(crate) fn of(host: Host) -> Self {
        Self { host, port: PORT }
    }

    /// A server of this host.
    pub(crate) fn at(address: SocketAddr) -> Self {
        Self { host: Host::Address(address.ip()), port: address.port() }
    }

    /// `HOST`, `HOST:PORT`, `[V6]` or `[V6]:PORT`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong = |error: &dyn std::fmt::Display| error.to_string();
        // An IPv6 address without brackets has no port.
        if let Ok(host) = text.parse() {
            return Ok(Self::of(host));
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => match rest.split_once(']') {
                Some((host, "")) => (host, None),
                Some((host, port)) => (host, port.strip_prefix(':')),
                None => return Err("the bracket is not closed".to_owned()),
            },
            None => match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let host = host.parse().map_err(|error| wrong(&error))?;
        let port = match port.map(str::parse) {
            None if text.ends_with(']') => PORT,
            Some(Ok(port)) if port != 0 => port,
            None | Some(Ok(_) | Err(_)) => {
                return Err("the port is a number up to 65535".to_owned());
            }
        };
        Ok(Self { host, port })
    }

    /// One line for each client. Those that begin with `#` are remarks, in a shell as well.
    pub(super) fn lines(&self, export: &str, files: &ClientFiles) -> String {
        let mut lines = String::new();
        let mut line = |text: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(lines, "{}", Escaped(&text));
        };
        line(format!("# nbd-client with {}: list the exports, attach one", self.host));
        line(self.nbd_client("-l", "", "", files));
        line(self.nbd_client("", "/dev/nbd0", export, files));
        for text in self.nbdtab(export, files) {
            line(text);
        }
        line(format!("# libnbd with {}", self.host));
        line(format!("nbdinfo {}", quoted(&self.uri(export, files))));
        line(format!("# QEMU with {}", self.host));
        line(self.qemu_img(export, files));
        lines
    }

    /// Without `-keyfile` it would send no certificate, and without `-cacertfile` it would take any
    /// server for the right one.
    pub(crate) fn nbd_client(
        &self,
        mode: &str,
        device: &str,
        export: &str,
        files: &ClientFiles,
    ) -> String {
        let mut words = vec!["nbd-client".to_owned()];
        let mut add = |word: &str| {
            if !word.is_empty() {
                words.push(quoted(word));
            }
        };
        add(mode);
        add(&self.host.to_string());
        if self.port != PORT {
            add(&self.port.to_string());
        }
        add(device);
        if !export.is_empty() {
            add("-N");
            add(export);
        }
        let bundle = files.bundle.to_string_lossy();
        for option in ["-certfile", "-keyfile", "-cacertfile"] {
            add(option);
            add(&bundle);
        }
        words.join(" ")
    }

    fn nbdtab(&self, export: &str, files: &ClientFiles) -> Vec<String> {
        let bundle = files.bundle.to_string_lossy();
        let fits = |text: &str| !text.contains(|c: char| c.is_whitespace() || "#,".contains(c));
        if !fits(&bundle) || !fits(export) {
            return vec![
                "# /etc/nbdtab takes no spaces, commas and `#` in paths and names".to_owned(),
            ];
        }
        // An empty field cannot be written, so the default export needs its other name.
        let (remark, name) = match export {
            "" => ("a line of /etc/nbdtab, with the name of the export", "EXPORT"),
            name => ("a line of /etc/nbdtab", name),
        };
        let mut options = format!("certfile={bundle},keyfile={bundle},cacertfile={bundle}");
        let mut lines = vec![format!("# {remark}")];
        if self.port != PORT {
            lines.push("# (nbd-client 3.24 ignores the port in it)".to_owned());
            let _ = write!(options, ",port={}", self.port);
        }
        lines.push(format!("nbd0 {} {name} {options}", self.host));
        lines
    }

    /// What libnbd is told.
    pub(crate) fn uri(&self, export: &str, files: &ClientFiles) -> String {
        let host = match &self.host {
            Host::Address(std::net::IpAddr::V6(address)) => format!("[{address}]"),
            Host::Address(std::net::IpAddr::V4(_)) | Host::Dns(_) => self.host.to_string(),
        };
        let port = if self.port == PORT { String::new() } else { format!(":{}", self.port) };
        format!(
            "nbds://{host}{port}/{}?tls-certificates={}",
            uri::escape(export.as_bytes()),
            uri::escape(files.directory.as_os_str().as_bytes())
        )
    }

    /// What QEMU is told.
    pub(crate) fn qemu_img(&self, export: &str, files: &ClientFiles) -> String {
        // QEMU's option lists have their own quoting.
        let comma = |text: &str| text.replace(',', ",,");
        let credentials = format!(
            "tls-creds-x509,id=tls0,dir={},endpoint=client",
            comma(&files.directory.to_string_lossy())
        );
        let mut image = format!("driver=nbd,host={},port={}", self.host, self.port);
        if !export.is_empty() {
            let _ = write!(image, ",export={}", comma(export));
        }
        image.push_str(",tls-creds=tls0");
        format!("qemu-img info --object {} --image-opts {}", quoted(&credentials), quoted(&image))
    }
}

/// A word as a shell takes it for one.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._/:,=@%+[]".contains(c);
    if !word.is_empty() && word.chars().all(|c| plain(c) && !"[]".contains(c)) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(directory: &str) -> ClientFiles {
        ClientFiles {
            bundle: format!("{directory}/alice.pem").into(),
            directory: format!("{directory}/alice").into(),
        }
    }

    #[test]
    fn a_server_is_a_host_and_perhaps_a_port() {
        for (text, host, port) in [
            ("nbd.example.com", "nbd.example.com", 10809),
            ("nbd.example.com:1", "nbd.example.com", 1),
            ("10.0.0.5:10810", "10.0.0.5", 10810),
            ("::1", "::1", 10809),
            ("[::1]", "::1", 10809),
            ("[::1]:65535", "::1", 65535),
        ] {
            let target = Target::parse(text).unwrap();
            assert_eq!((target.host.to_string().as_str(), target.port), (host, port), "{text}");
        }
        for text in ["", "a:", "a:0", "a:65536", "a:b", "[::1", "[::1]1", "[::1]:", "a b", "[a:1"] {
            assert!(Target::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_client_gets_its_line() {
        let lines = Target::parse("nbd.example.com").unwrap().lines("disk", &files("/pki"));
        let pem = "/pki/alice.pem";
        let all_three = format!("-certfile {pem} -keyfile {pem} -cacertfile {pem}");
        for line in [
            format!("nbd-client -l nbd.example.com {all_three}"),
            format!("nbd-client nbd.example.com /dev/nbd0 -N disk {all_three}"),
            format!("nbd0 nbd.example.com disk certfile={pem},keyfile={pem},cacertfile={pem}"),
            "nbdinfo 'nbds://nbd.example.com/disk?tls-certificates=/pki/alice'".to_owned(),
            "qemu-img info --object tls-creds-x509,id=tls0,dir=/pki/alice,endpoint=client \
             --image-opts driver=nbd,host=nbd.example.com,port=10809,export=disk,tls-creds=tls0"
                .to_owned(),
        ] {
            assert!(lines.lines().any(|found| found == line), "{line}\n{lines}");
        }
    }

    #[test]
    fn ports_and_addresses_stand_where_each_client_wants_them() {
        let lines = Target::parse("[2001:db8::1]:7").unwrap().lines("", &files("/pki"));
        for part in [
            "nbd-client -l 2001:db8::1 7 -certfile",
            "nbd-client 2001:db8::1 7 /dev/nbd0 -certfile",
            "nbd0 2001:db8::1 EXPORT certfile=/pki/alice.pem,",
            ",port=7\n",
            "'nbds://[2001:db8::1]:7/?tls-certificates=/pki/alice'",
            "host=2001:db8::1,port=7,tls-creds=tls0",
        ] {
            assert!(lines.contains(part), "{part}\n{lines}");
        }
    }

    #[test]
    fn odd_paths_and_names_stay_one_word() {
        let lines = Target::parse("localhost").unwrap().lines("a b", &files("/it's, mine"));
        for part in [
            r"-N 'a b' -certfile '/it'\''s, mine/alice.pem' -keyfile",
            "# /etc/nbdtab takes no spaces",
            r"'nbds://localhost/a%20b?tls-certificates=/it%27s%2C%20mine/alice'",
            r"'tls-creds-x509,id=tls0,dir=/it'\''s,, mine/alice,endpoint=client'",
            "'driver=nbd,host=localhost,port=10809,export=a b,tls-creds=tls0'",
        ] {
            assert!(lines.contains(part), "{part}\n{lines}");
        }
        let lines = Target::parse("localhost").unwrap().lines("a\x1b[31m", &files("/pki"));
        assert!(!lines.contains('\x1b'), "{lines}");
    }
}
