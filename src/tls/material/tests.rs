use super::*;

use rcgen::{ExtendedKeyUsagePurpose, KeyPair};
use time::Duration;

use crate::tls::config::{MinVersion, TlsConfig};
use crate::tls::testing::{Ca, Files, ca_params, leaf_params, now, sources};

fn kind(sources: &Sources) -> MaterialErrorKind {
    Material::load(sources).unwrap_err().kind
}

#[test]
fn a_bundle_may_stand_in_any_order() {
    let (files, root) = (Files::new(), Ca::new("root"));
    let (upper, other) = (root.intermediate("upper"), Ca::new("other root"));
    let lower = upper.intermediate("lower");
    let leaf = lower.server();
    let parts = [&leaf.cert, &leaf.key, &root.cert, &upper.cert, &lower.cert, &other.cert];
    for shift in 0..parts.len() {
        for reversed in [false, true] {
            let mut parts = parts;
            parts.rotate_left(shift);
            if reversed {
                parts.reverse();
            }
            let text: String = parts.iter().map(|part| part.as_str()).collect();
            let material = Material::load(&sources(&files.write("srv.pem", text))).unwrap();
            assert_eq!(material.chain, [&leaf.der, &lower.der, &upper.der].map(Clone::clone));
            let mut cas = material.client_cas.clone();
            cas.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
            let mut expected = [root.der.clone(), other.der.clone()];
            expected.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
            assert_eq!(cas, expected);
            assert_eq!(material.warnings, []);
            assert_eq!(material.files, [files.path("srv.pem")]);
        }
    }
}

#[test]
fn keys_are_taken_in_every_form_that_openssl_writes() {
    let files = Files::new();
    files.openssl("genrsa -traditional -out rsa1.key 2048");
    files.openssl("pkcs8 -topk8 -nocrypt -in rsa1.key -out rsa8.key");
    // With the parameters of the curve before it, as `ecparam` does.
    files.openssl("ecparam -name prime256v1 -genkey -out ec1.key");
    files.openssl("pkcs8 -topk8 -nocrypt -in ec1.key -out ec8.key");
    files.openssl("ecparam -name secp384r1 -genkey -noout -out p384.key");
    files.openssl("genpkey -algorithm ed25519 -out ed.key");
    for (name, begin) in [
        ("rsa1", "BEGIN RSA PRIVATE KEY"),
        ("rsa8", "BEGIN PRIVATE KEY"),
        ("ec1", "BEGIN EC PRIVATE KEY"),
        ("ec8", "BEGIN PRIVATE KEY"),
        ("p384", "BEGIN EC PRIVATE KEY"),
        ("ed", "BEGIN PRIVATE KEY"),
    ] {
        let key = files.text(&format!("{name}.key"));
        assert!(key.contains(begin), "{name}");
        files.openssl(&format!(
            "req -x509 -key {name}.key -out {name}.crt -days 2 -subj /CN={name} \
             -addext basicConstraints=critical,CA:FALSE"
        ));
        let ca = Ca::new("test CA");
        let bundle = format!("{key}{}{}", files.text(&format!("{name}.crt")), ca.cert);
        let material = Material::load(&sources(&files.write("srv.pem", bundle))).unwrap();
        assert!(TlsConfig::new(&material, MinVersion::Tls12).is_ok(), "{name}");
        assert_eq!(material.warnings, [], "{name}");
    }
}

#[test]
fn a_key_is_needed_and_it_has_to_be_one_and_the_right_one() {
    let (files, ca) = (Files::new(), Ca::new("test CA"));
    let (leaf, other) = (ca.server(), ca.server());
    let bundle = |text: String| sources(&files.write("srv.pem", text));

    assert!(matches!(kind(&bundle(leaf.cert.clone())), MaterialErrorKind::NoKey));
    let only_key = kind(&bundle(leaf.key.clone()));
    assert!(matches!(only_key, MaterialErrorKind::File(FileErrorKind::NoCertificate)));
    let two = kind(&bundle(format!("{}{}", leaf.pem(), other.key)));
    assert!(matches!(two, MaterialErrorKind::SeveralKeys { count: 2 }));
    let wrong = kind(&bundle(format!("{}{}{}", leaf.cert, ca.cert, other.key)));
    assert!(matches!(wrong, MaterialErrorKind::KeyMatchesNone { count: 2 }));
    files.openssl("genrsa -out small.key 1024");
    let small = kind(&bundle(format!("{}{}", leaf.cert, files.text("small.key"))));
    assert!(matches!(small, MaterialErrorKind::UnsupportedKey(_)));

    // In two files, whether the bundle repeats the key or not.
    let key = files.write("srv.key", &leaf.key);
    for text in [leaf.cert.clone(), leaf.pem()] {
        let mut split = bundle(format!("{text}{}", ca.cert));
        let ServerFiles::Files { key: named, .. } = &mut split.server else { panic!() };
        *named = Some(key.clone());
        let material = Material::load(&split).unwrap();
        assert_eq!(material.files, [files.path("srv.pem"), key.clone()]);
    }
    let mut split = bundle(format!("{}{}", other.pem(), ca.cert));
    split.server = ServerFiles::Files { cert: files.path("srv.pem"), key: Some(key.clone()) };
    assert!(matches!(kind(&split), MaterialErrorKind::SeveralKeys { count: 2 }));
    // The whole bundle named twice is as good as once.
    files.write("srv.pem", format!("{}{}", leaf.pem(), ca.cert));
    let cert = files.path("srv.pem");
    split.server = ServerFiles::Files { cert: cert.clone(), key: Some(cert) };
    assert!(Material::load(&split).is_ok());
}

#[test]
fn a_key_that_others_can_read_is_refused_unless_the_operator_insists() {
    let (files, ca) = (Files::new(), Ca::new("test CA"));
    let leaf = ca.server();
    let mut bundle = sources(&files.write("srv.pem", format!("{}{}", leaf.pem(), ca.cert)));
    for mode in [0o640, 0o604, 0o660, 0o666, 0o601] {
        files.protect("srv.pem", mode);
        bundle.insecure_key_permissions = false;
        let error = Material::load(&bundle).unwrap_err();
        assert!(
            matches!(error.kind, MaterialErrorKind::ExposedKey { mode: m } if m == mode),
            "{error}"
        );
        assert!(error.to_string().contains("--insecure-key-permissions"), "{error}");
        bundle.insecure_key_permissions = true;
        assert!(Material::load(&bundle).is_ok());
    }

    // It is the file that counts, and not a link to it.
    bundle.insecure_key_permissions = false;
    std::os::unix::fs::symlink("srv.pem", files.path("link.pem")).unwrap();
    bundle.server = ServerFiles::Files { cert: files.path("link.pem"), key: None };
    assert!(matches!(kind(&bundle), MaterialErrorKind::ExposedKey { .. }));
    files.protect("srv.pem", 0o400);
    assert!(Material::load(&bundle).is_ok());

    // Certificates are for everybody, and a key in the file of a CA is still a key.
    files.write("ca.pem", &ca.cert);
    files.protect("ca.pem", 0o644);
    bundle.client_cas = vec![files.path("ca.pem")];
    assert!(Material::load(&bundle).is_ok());
    files.write("ca.pem", format!("{}{}", ca.cert, ca.key));
    files.protect("ca.pem", 0o644);
    assert!(matches!(kind(&bundle), MaterialErrorKind::ExposedKey { .. }));
}

#[test]
fn the_client_ca_is_looked_for_from_the_nearest_place_to_the_farthest() {
    let (files, credentials) = (Files::new(), Files::new());
    let cas = ["flag", "bundle", "beside", "credentials"].map(Ca::new);
    let [flag, in_bundle, beside, in_credentials] = &cas;
    let leaf = in_bundle.server();
    let mut sources = sources(&files.write("srv.pem", format!("{}{}", leaf.pem(), in_bundle.cert)));
    sources.client_cas = vec![files.write("flag.pem", &flag.cert)];
    sources.credentials_directory = Some(credentials.path(""));
    files.write("ca-cert.pem", &beside.cert);
    credentials.write("ca-cert.pem", &in_credentials.cert);
    let found = |sources: &Sources| Material::load(sources).unwrap().client_cas;
    let only = |ca: &Ca| vec![ca.der.clone()];

    assert_eq!(found(&sources), only(flag));
    sources.client_cas.push(files.write("more.pem", &beside.cert));
    assert_eq!(found(&sources), [flag.der.clone(), beside.der.clone()]);
    sources.client_cas.clear();
    assert_eq!(found(&sources), only(in_bundle));
    files.write("srv.pem", leaf.pem());
    assert_eq!(found(&sources), only(beside));
    std::fs::remove_file(files.path("ca-cert.pem")).unwrap();
    assert_eq!(found(&sources), only(in_credentials));
    std::fs::remove_file(credentials.path("ca-cert.pem")).unwrap();

    let error = Material::load(&sources).unwrap_err();
    assert_eq!(error.file, files.path("srv.pem"));
    let text = error.to_string();
    for way_out in [
        "--tls-client-ca",
        "append",
        "hexz-nbd certs init",
        "--insecure-allow-anonymous",
        &files.path("ca-cert.pem").display().to_string(),
        &credentials.path("ca-cert.pem").display().to_string(),
    ] {
        assert!(text.contains(way_out), "{way_out}: {text}");
    }
    sources.client_auth = ClientAuth::Anonymous;
    assert_eq!(found(&sources), []);
}

/// With a certificate of a public CA, its other customers would be let in.
#[test]
fn an_intermediate_ca_in_the_bundle_signs_no_clients() {
    let (files, root) = (Files::new(), Ca::new("a public CA"));
    let middle = root.intermediate("its intermediate");
    let full_chain = format!("{}{}", middle.server().pem(), middle.cert);
    let error = Material::load(&sources(&files.write("srv.pem", full_chain))).unwrap_err();
    assert!(
        matches!(error.kind, MaterialErrorKind::NoClientCa { intermediates: true, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("intermediate"), "{error}");
}

#[test]
fn only_a_ca_is_taken_as_one() {
    let (files, ca) = (Files::new(), Ca::new("test CA"));
    let mut sources = sources(&files.write("srv.pem", ca.server().pem()));
    let mut client_ca = |text: &str| {
        sources.client_cas = vec![files.write("ca.pem", text)];
        Material::load(&sources).unwrap_err()
    };
    let error = client_ca(&ca.client("a leaf").cert);
    assert!(matches!(error.kind, MaterialErrorKind::NotACa { .. }), "{error}");
    assert_eq!(error.file, files.path("ca.pem"));
    let error = client_ca(&ca.key);
    assert!(matches!(error.kind, MaterialErrorKind::File(FileErrorKind::NoCertificate)), "{error}");
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let error = client_ca(garbage);
    assert!(matches!(error.kind, MaterialErrorKind::MalformedCertificate { number: 1 }));
    files.openssl("req -new -newkey rsa:2048 -nodes -keyout v1.key -out v1.csr -subj /CN=v1");
    files.openssl("x509 -req -in v1.csr -signkey v1.key -days 2 -out v1.pem");
    let error = client_ca(&files.text("v1.pem"));
    assert!(matches!(error.kind, MaterialErrorKind::Version1 { .. }), "{error}");
}

#[test]
fn a_server_certificate_of_version_1_is_refused_with_the_remedy() {
    let (files, ca) = (Files::new(), Ca::new("test CA"));
    files.openssl("req -new -newkey rsa:2048 -nodes -keyout v1.key -out v1.csr -subj /CN=v1");
    files.openssl("x509 -req -in v1.csr -signkey v1.key -days 2 -out v1.pem");
    let bundle = format!("{}{}{}", files.text("v1.pem"), files.text("v1.key"), ca.cert);
    let error = Material::load(&sources(&files.write("srv.pem", bundle))).unwrap_err();
    assert!(matches!(error.kind, MaterialErrorKind::Version1 { .. }), "{error}");
    assert!(error.to_string().contains("-extfile"), "{error}");
}

#[test]
fn what_clients_will_not_like_is_a_warning_and_no_error() {
    let (files, ca) = (Files::new(), Ca::new("test CA"));
    let warned = |params| {
        let text = format!("{}{}", ca.issue(params).pem(), ca.cert);
        let material = Material::load(&sources(&files.write("srv.pem", text))).unwrap();
        let [warning] = &material.warnings[..] else { panic!("{:?}", material.warnings) };
        assert!(warning.to_string().contains("srv.pem: "), "{warning}");
        warning.clone()
    };
    let server = || leaf_params("server", ExtendedKeyUsagePurpose::ServerAuth);
    let mut expired = server();
    expired.not_after = now() - Duration::HOUR;
    assert!(matches!(warned(expired), Warning::ServerExpired { .. }));
    let mut early = server();
    early.not_before = now() + Duration::HOUR;
    assert!(matches!(warned(early), Warning::ServerNotYetValid { .. }));
    let client = leaf_params("client", ExtendedKeyUsagePurpose::ClientAuth);
    assert!(matches!(warned(client), Warning::ServerPurpose { .. }));
    assert!(matches!(warned(ca_params("a CA")), Warning::ServerIsCa { .. }));

    let mut old = ca_params("old CA");
    (old.not_before, old.not_after) = (now() - Duration::DAY * 2, now() - Duration::DAY);
    let old = old.self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
    let stray = ca.client("stray").cert;
    let text = format!("{}{old}{stray}", ca.server().pem());
    let material = Material::load(&sources(&files.write("srv.pem", text))).unwrap();
    let [unused, expired] = &material.warnings[..] else { panic!("{:?}", material.warnings) };
    assert!(matches!(unused, Warning::Unused { subject, .. } if subject == "CN=stray"));
    assert!(matches!(expired, Warning::ClientCaExpired { .. }));
}

#[test]
fn the_directory_that_qemu_and_nbdkit_share_is_read_as_they_do() {
    let (files, ca, other) = (Files::new(), Ca::new("test CA"), Ca::new("other CA"));
    let leaf = ca.server();
    let mut sources = sources(&files.path(""));
    sources.server = ServerFiles::Directory(files.path(""));
    // A root beside the leaf is not what the others would take for the client CA.
    files.write("server-cert.pem", format!("{}{}", leaf.cert, other.cert));
    files.write("server-key.pem", &leaf.key);
    let error = Material::load(&sources).unwrap_err();
    assert!(matches!(error.kind, MaterialErrorKind::NoClientCa { .. }), "{error}");
    files.write("ca-cert.pem", &ca.cert);
    let material = Material::load(&sources).unwrap();
    assert_eq!((material.chain, material.client_cas), (vec![leaf.der], vec![ca.der.clone()]));
    assert_eq!(material.crls.len(), 0);
    files.write("ca-crl.pem", ca.crl(&[]));
    let material = Material::load(&sources).unwrap();
    assert_eq!(material.crls.len(), 1);
    let names = ["server-cert.pem", "server-key.pem", "ca-cert.pem", "ca-crl.pem"];
    assert_eq!(material.files, names.map(|name| files.path(name)));
    assert_eq!(sources.files(), names.map(|name| files.path(name)));
    files.protect("server-key.pem", 0o640);
    let error = Material::load(&sources).unwrap_err();
    assert_eq!(error.file, files.path("server-key.pem"));
}

#[test]
fn a_list_that_lies_beside_the_certificate_is_used() {
    let (files, credentials, ca) = (Files::new(), Files::new(), Ca::new("test CA"));
    let mut sources = sources(&files.write("srv.pem", format!("{}{}", ca.server().pem(), ca.cert)));
    let crls = |sources: &Sources| Material::load(sources).unwrap().crls.len();
    assert_eq!(crls(&sources), 0);
    sources.credentials_directory = Some(credentials.path(""));
    credentials.write("ca-crl.pem", ca.crl(&[]));
    assert_eq!(crls(&sources), 1);
    files.write("ca-crl.pem", format!("{}{}", ca.crl(&[]), ca.crl(&[])));
    assert_eq!(crls(&sources), 2);
    sources.crls = vec![files.write("named.pem", ca.crl(&[]))];
    assert_eq!(crls(&sources), 1);
    // One in the bundle counts in any case.
    files.write("srv.pem", format!("{}{}{}", ca.server().pem(), ca.cert, ca.crl(&[])));
    assert_eq!(crls(&sources), 2);

    sources.crls = vec![files.write("none.pem", &ca.cert)];
    assert!(matches!(kind(&sources), MaterialErrorKind::NoCrl));
    let garbage = "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
    sources.crls = vec![files.write("garbage.pem", garbage)];
    assert!(matches!(kind(&sources), MaterialErrorKind::UnusableCrl { number: 1, .. }));
    sources.crls = vec![files.path("absent.pem")];
    let error = Material::load(&sources).unwrap_err();
    assert_eq!(error.file, files.path("absent.pem"));
}

/// A watcher has to see a file come as well as change.
#[test]
fn the_files_of_the_sources_include_those_that_are_not_there_yet() {
    let (files, credentials) = (Files::new(), Files::new());
    let mut sources = sources(&files.path("srv.pem"));
    sources.credentials_directory = Some(credentials.path("dir"));
    assert_eq!(
        sources.files(),
        [
            files.path("srv.pem"),
            files.path("ca-cert.pem"),
            credentials.path("dir/ca-cert.pem"),
            files.path("ca-crl.pem"),
            credentials.path("dir/ca-crl.pem"),
        ]
    );
    sources.client_cas = vec!["ca.pem".into()];
    sources.crls = vec!["crl.pem".into()];
    assert_eq!(sources.files(), [files.path("srv.pem"), "ca.pem".into(), "crl.pem".into()]);
}

#[test]
fn what_is_printed_of_the_material_holds_no_key() {
    let (files, ca) = (Files::new(), Ca::new("test CA"));
    let leaf = ca.server();
    let bundle = files.write("srv.pem", format!("{}{}", leaf.pem(), ca.cert));
    let material = Material::load(&sources(&bundle)).unwrap();
    let key = material.key.secret_der().to_vec();
    let shown = format!("{material:?}");
    assert!(shown.contains("elided") && !shown.contains(&format!("{:?}", &key[40..56])));
}
