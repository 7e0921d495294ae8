//! Handshakes between two real ends, in memory.

use std::sync::Arc;

use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
use rustls::pki_types::CertificateDer;
use rustls::version::{TLS12, TLS13};
use rustls::{HandshakeKind, ProtocolVersion, SupportedProtocolVersion};
use time::Duration;

use crate::tls::handshake::{Cause, HandshakeFailure};
use crate::tls::identity::PeerIdentity;
use crate::tls::testing::{
    Ca, Files, Leaf, Shaken, ca_params, client, leaf_params, material, now, shake, shake_with,
    sources, tls_config,
};
use crate::tls::{Material, MinVersion, TlsConfig, config, read_certificates};

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// Handshakes with both versions of TLS. They have to end alike.
fn each_version(
    ca: &Ca,
    config: &TlsConfig,
    shown: Option<(Vec<CertificateDer<'static>>, &str)>,
) -> Vec<Shaken> {
    let handshake = |version| shake(config, &client(ca, &[version], shown.clone()));
    VERSIONS.into_iter().map(handshake).collect()
}

fn show(leaf: &Leaf) -> Option<(Vec<CertificateDer<'static>>, &str)> {
    Some((vec![leaf.der.clone()], &leaf.key))
}

/// Refused by the server with both versions, and for this cause.
fn assert_refused(
    ca: &Ca,
    config: &TlsConfig,
    shown: Option<(Vec<CertificateDer<'static>>, &str)>,
    cause: Cause,
) -> HandshakeFailure {
    let mut failures = each_version(ca, config, shown).into_iter().map(|shaken| {
        let error = shaken.server_outcome.expect_err("the server should have refused");
        // As tokio-rustls passes it on.
        HandshakeFailure::from(&std::io::Error::new(std::io::ErrorKind::InvalidData, error))
    });
    let first = failures.next().unwrap();
    assert_eq!(first.cause, cause, "{first}");
    for failure in failures {
        assert_eq!(failure, first);
    }
    first
}

fn assert_accepted(
    ca: &Ca,
    config: &TlsConfig,
    shown: Option<(Vec<CertificateDer<'static>>, &str)>,
) {
    for shaken in each_version(ca, config, shown) {
        assert_eq!((shaken.server_outcome, shaken.client_outcome), (Ok(()), Ok(())));
        assert!(!shaken.server.is_handshaking() && !shaken.client.is_handshaking());
    }
}

/// A server of one CA that is in its bundle.
fn server_of(ca: &Ca, crls: &[&str]) -> TlsConfig {
    tls_config(&format!("{}{}", ca.server().pem(), ca.cert), crls)
}

#[test]
fn a_client_with_a_good_certificate_is_let_in_and_known_by_name() {
    let ca = Ca::new("test CA");
    let (config, leaf) = (server_of(&ca, &[]), ca.client("build-7"));
    for (version, shaken) in VERSIONS.into_iter().zip(each_version(&ca, &config, show(&leaf))) {
        assert_eq!((shaken.server_outcome, shaken.client_outcome), (Ok(()), Ok(())));
        assert_eq!(shaken.server.protocol_version(), Some(version.version));
        assert_eq!(shaken.server.alpn_protocol(), None);
        let identity = PeerIdentity::from_chain(shaken.server.peer_certificates().unwrap());
        assert_eq!(identity.unwrap().common_name.as_deref(), Some("build-7"));
    }
}

#[test]
fn every_bad_certificate_is_refused_for_its_own_cause() {
    let (ca, other) = (Ca::new("test CA"), Ca::new("other CA"));
    let revoked = ca.client("revoked");
    let config = server_of(&ca, &[&ca.crl(&[&revoked])]);
    assert_accepted(&ca, &config, show(&ca.client("good")));

    let mut expired = leaf_params("expired", ClientAuth);
    expired.not_before = now() - Duration::DAY * 3;
    expired.not_after = now() - Duration::DAY * 2;
    let mut early = leaf_params("early", ClientAuth);
    early.not_before = now() + Duration::DAY * 2;
    early.not_after = now() + Duration::DAY * 3;
    let mut any_ca = leaf_params("a CA", ClientAuth);
    any_ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let own = leaf_params("self-signed", ClientAuth).self_signed(&key).unwrap();
    let own =
        Leaf { cert: own.pem(), key: key.serialize_pem(), der: own.der().clone(), serial: vec![] };

    for (leaf, cause) in [
        (other.client("stranger"), Cause::UnknownCa),
        (ca.issue(expired), Cause::Expired),
        (ca.issue(early), Cause::NotYetValid),
        (revoked, Cause::Revoked),
        (own, Cause::UnknownCa),
        (ca.issue(leaf_params("a server", ServerAuth)), Cause::WrongPurpose),
        (ca.issue(any_ca), Cause::CaAsLeaf),
        (
            // A forger has the name of the CA, and not its key.
            Ca::new("test CA").client("forged"),
            Cause::BadSignature,
        ),
    ] {
        assert_refused(&ca, &config, show(&leaf), cause);
    }
}

#[test]
fn a_client_without_a_certificate_is_refused_and_the_line_says_what_nbd_client_needs() {
    let ca = Ca::new("test CA");
    let failure = assert_refused(&ca, &server_of(&ca, &[]), None, Cause::NoCertificate);
    assert_eq!(
        failure.to_string(),
        "the client sent no certificate; nbd-client needs -keyfile as well as -certfile"
    );
}

#[test]
fn a_date_that_is_past_stands_in_the_line() {
    let ca = Ca::new("test CA");
    let mut params = leaf_params("expired", ClientAuth);
    params.not_before = rcgen::date_time_ymd(2001, 2, 3);
    params.not_after = rcgen::date_time_ymd(2002, 3, 4);
    let leaf = ca.issue(params);
    let failure = assert_refused(&ca, &server_of(&ca, &[]), show(&leaf), Cause::Expired);
    assert!(failure.to_string().ends_with("(valid until 2002-03-04T00:00:00Z)"), "{failure}");
}

/// What the recipe of many a tutorial makes: `openssl x509 -req` without an extension file.
#[test]
fn a_certificate_of_version_1_from_a_plain_openssl_recipe_is_named_as_such() {
    let (ca, files) = (Ca::new("test CA"), Files::new());
    files.write("ca.pem", &ca.cert);
    files.write("ca.key", &ca.key);
    files.openssl("req -new -newkey rsa:2048 -nodes -keyout c.key -out c.csr -subj /CN=old");
    files
        .openssl("x509 -req -in c.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out c.pem");
    let chain = read_certificates(&files.path("c.pem")).unwrap();
    let key = files.text("c.key");
    let failure = assert_refused(&ca, &server_of(&ca, &[]), Some((chain, &key)), Cause::Version1);
    assert!(failure.to_string().contains("hexz-nbd certs client"), "{failure}");
}

#[test]
fn certificates_made_with_openssl_are_let_in_whether_rsa_or_ecdsa() {
    let files = Files::new();
    files.write("client.ext", "basicConstraints=CA:FALSE\nextendedKeyUsage=clientAuth\n");
    files.write(
        "server.ext",
        "basicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\nsubjectAltName=DNS:localhost\n",
    );
    for kind in ["rsa:2048", "ec -pkeyopt ec_paramgen_curve:prime256v1"] {
        files.openssl(&format!(
            "req -x509 -newkey {kind} -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=openssl"
        ));
        for who in ["server", "client"] {
            files.openssl(&format!(
                "req -new -newkey {kind} -nodes -keyout {who}.key -out {who}.csr -subj /CN={who}"
            ));
            files.openssl(&format!(
                "x509 -req -in {who}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
                 -extfile {who}.ext -out {who}.pem"
            ));
        }
        let bundle: String =
            ["ca.pem", "server.pem", "server.key"].map(|file| files.text(file)).concat();
        let config = tls_config(&bundle, &[]);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(read_certificates(&files.path("ca.pem")).unwrap().remove(0)).unwrap();
        let chain = read_certificates(&files.path("client.pem")).unwrap();
        let key = files.text("client.key");
        for version in VERSIONS {
            let client = rustls::ClientConfig::builder_with_provider(config::provider())
                .with_protocol_versions(&[version])
                .unwrap()
                .with_root_certificates(roots.clone())
                .with_client_auth_cert(
                    chain.clone(),
                    rustls::pki_types::pem::PemObject::from_pem_slice(key.as_bytes()).unwrap(),
                )
                .unwrap();
            let shaken = shake(&config, &Arc::new(client));
            assert_eq!((shaken.server_outcome, shaken.client_outcome), (Ok(()), Ok(())), "{kind}");
        }
    }
}

#[test]
fn a_chain_through_an_intermediate_ca_is_sent_and_is_taken() {
    let root = Ca::new("root");
    let middle = root.intermediate("middle");
    let bundle = format!("{}{}{}", root.cert, middle.cert, middle.server().pem());
    let config = tls_config(&bundle, &[]);
    let leaf = middle.client("below");
    let chain = vec![leaf.der.clone(), middle.der.clone()];
    // The client trusts the root only, so that it accepts proves that the server sent the rest.
    assert_accepted(&root, &config, Some((chain, &leaf.key)));
    // And a client has to send its own.
    assert_refused(&root, &config, show(&leaf), Cause::UnknownCa);
}

#[test]
fn a_client_that_does_not_trust_the_server_is_told_apart_from_one_that_is_not_trusted() {
    let (ca, other) = (Ca::new("test CA"), Ca::new("other CA"));
    let leaf = ca.client("good");
    assert_refused(&other, &server_of(&ca, &[]), show(&leaf), Cause::RejectedByClient);
}

#[test]
fn the_oldest_version_is_12_unless_13_is_asked_for() {
    let ca = Ca::new("test CA");
    let material = material(&format!("{}{}", ca.server().pem(), ca.cert), &[]);
    let leaf = ca.client("good");
    let strict = TlsConfig::new(&material, MinVersion::Tls13).unwrap();
    let shaken = shake(&strict, &client(&ca, &[&TLS12], show(&leaf)));
    let failure = HandshakeFailure::from(&shaken.server_outcome.unwrap_err());
    assert_eq!(failure.cause, Cause::TlsVersion, "{failure}");
    let shaken = shake(&strict, &client(&ca, &[&TLS13, &TLS12], show(&leaf)));
    assert_eq!(shaken.server_outcome, Ok(()));
    assert_eq!(shaken.server.protocol_version(), Some(ProtocolVersion::TLSv1_3));
}

#[test]
fn an_anonymous_client_is_let_in_when_asked_for_and_a_certificate_is_checked_all_the_same() {
    let (ca, files) = (Ca::new("test CA"), Files::new());
    let with_ca = files.write("with.pem", format!("{}{}", ca.server().pem(), ca.cert));
    let without_ca = files.write("without.pem", ca.server().pem());
    for (bundle, has_ca) in [(with_ca, true), (without_ca, false)] {
        let mut sources = sources(&bundle);
        sources.client_auth = config::ClientAuth::Anonymous;
        let material = Material::load(&sources).unwrap();
        let config = TlsConfig::new(&material, MinVersion::Tls12).unwrap();
        assert_accepted(&ca, &config, None);
        assert_eq!(config.verify_again(None), Ok(()));
        assert_accepted(&ca, &config, show(&ca.client("good")));
        let stranger = Ca::new("other CA").client("stranger");
        if has_ca {
            assert_refused(&ca, &config, show(&stranger), Cause::UnknownCa);
        }
    }
}

#[test]
fn a_list_of_one_ca_locks_out_nobody_of_another() {
    let (ca, other) = (Ca::new("test CA"), Ca::new("other CA"));
    let (revoked, namesake) = (ca.client("revoked"), other.client("not revoked"));
    let bundle = format!("{}{}{}", ca.server().pem(), ca.cert, other.cert);
    let config = tls_config(&bundle, &[&ca.crl(&[&revoked, &namesake])]);
    assert_refused(&ca, &config, show(&revoked), Cause::Revoked);
    assert_accepted(&ca, &config, show(&ca.client("good")));
    // Serial numbers are those of a CA: the other one's are not in this list.
    assert_accepted(&ca, &config, show(&namesake));
}

/// RUSTSEC-2026-0049: a certificate with several distribution points was found in no list.
#[test]
fn a_revoked_certificate_is_refused_however_many_distribution_points_it_names() {
    let ca = Ca::new("test CA");
    let mut params = leaf_params("revoked", ClientAuth);
    params.crl_distribution_points = (0..3)
        .map(|n| rcgen::CrlDistributionPoint { uris: vec![format!("http://localhost/{n}.crl")] })
        .collect();
    let leaf = ca.issue(params);
    assert_refused(&ca, &server_of(&ca, &[&ca.crl(&[&leaf])]), show(&leaf), Cause::Revoked);
}

#[test]
fn a_revoked_intermediate_ca_takes_all_below_it_along() {
    let root = Ca::new("root");
    let middle_leaf = root.issue(ca_params("middle"));
    // The same CA once more, as an issuer.
    let key = rcgen::KeyPair::from_pem(&middle_leaf.key).unwrap();
    let issuer = rcgen::Issuer::new(ca_params("middle"), key);
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = leaf_params("below", ClientAuth).signed_by(&key, &issuer).unwrap();
    let (chain, key) = (vec![leaf.der().clone(), middle_leaf.der.clone()], key.serialize_pem());

    assert_accepted(&root, &server_of(&root, &[&root.crl(&[])]), Some((chain.clone(), &key)));
    let config = server_of(&root, &[&root.crl(&[&middle_leaf])]);
    assert_refused(&root, &config, Some((chain, &key)), Cause::Revoked);
}

#[test]
fn a_list_past_its_time_still_locks_out_whom_it_names_and_nobody_else() {
    let ca = Ca::new("test CA");
    let revoked = ca.client("revoked");
    let stale = ca.crl_with(&[&revoked], |params| {
        params.this_update = now() - Duration::DAY * 30;
        params.next_update = now() - Duration::DAY * 20;
    });
    let config = server_of(&ca, &[&stale]);
    assert_refused(&ca, &config, show(&revoked), Cause::Revoked);
    assert_accepted(&ca, &config, show(&ca.client("good")));
}

#[test]
fn of_two_lists_of_one_ca_the_newer_one_counts_in_whatever_order_they_stand() {
    let ca = Ca::new("test CA");
    let revoked = ca.client("revoked");
    let old = ca.crl_with(&[], |params| params.this_update = now() - Duration::DAY);
    let new = ca.crl(&[&revoked]);
    for crls in [[&*old, &*new], [&*new, &*old]] {
        assert_refused(&ca, &server_of(&ca, &crls), show(&revoked), Cause::Revoked);
    }
}

/// The client keeps sessions and would resume one. The class of CVE-2025-68121: a ticket from
/// before a change of CA, list or rules goes on to work.
#[test]
fn no_session_is_resumed_so_that_a_reload_is_the_end_of_all_that_was_before() {
    let (ca, next) = (Ca::new("test CA"), Ca::new("next CA"));
    let leaf = ca.client("good");
    let bundle = format!("{}{}", ca.server().pem(), ca.cert);
    let revoked = ca.crl(&[&leaf]);
    for version in VERSIONS {
        let before = tls_config(&bundle, &[]);
        let client = client(&ca, &[version], show(&leaf));
        for _ in 0..3 {
            let shaken = shake(&before, &client);
            assert_eq!(shaken.server_outcome, Ok(()));
            assert_eq!(shaken.server.handshake_kind(), Some(HandshakeKind::Full));
            assert_eq!(shaken.client.tls13_tickets_received(), 0);
        }
        for (config, cause) in [
            (tls_config(&bundle, &[&revoked]), Cause::Revoked),
            (tls_config(&format!("{}{}", ca.server().pem(), next.cert), &[]), Cause::UnknownCa),
        ] {
            let error = shake(&config, &client).server_outcome.unwrap_err();
            assert_eq!(HandshakeFailure::from(&error).cause, cause);
        }
    }
}

/// That the test above would notice: with a store of sessions, the same client resumes.
#[test]
fn the_client_of_these_tests_resumes_where_a_server_lets_it() {
    let ca = Ca::new("test CA");
    let leaf = ca.client("good");
    let mut careless = (*server_of(&ca, &[]).server()).clone();
    careless.session_storage = rustls::server::ServerSessionMemoryCache::new(16);
    careless.send_tls13_tickets = 2;
    let careless = Arc::new(careless);
    for version in VERSIONS {
        let client = client(&ca, &[version], show(&leaf));
        shake_with(Arc::clone(&careless), &client);
        let again = shake_with(Arc::clone(&careless), &client);
        assert_eq!(again.server.handshake_kind(), Some(HandshakeKind::Resumed));
    }
}

#[test]
fn a_connection_that_is_open_is_judged_anew_by_the_next_configuration() {
    let (ca, next) = (Ca::new("test CA"), Ca::new("next CA"));
    let leaf = ca.client("good");
    let bundle = format!("{}{}", ca.server().pem(), ca.cert);
    let chain = [leaf.der.clone()];
    assert_eq!(tls_config(&bundle, &[]).verify_again(Some(&chain)), Ok(()));
    for (config, cause) in [
        (tls_config(&bundle, &[&ca.crl(&[&leaf])]), Cause::Revoked),
        (tls_config(&format!("{}{}", ca.server().pem(), next.cert), &[]), Cause::UnknownCa),
    ] {
        assert_eq!(config.verify_again(Some(&chain)).unwrap_err().cause, cause);
    }
    for nobody in [None, Some(&[][..])] {
        let failure = tls_config(&bundle, &[]).verify_again(nobody).unwrap_err();
        assert_eq!(failure.cause, Cause::NoCertificate);
    }
}

/// The names of client CAs are nobody's business before they have shown a certificate.
#[test]
fn the_request_for_a_certificate_names_no_ca() {
    let ca = Ca::new("a name that is not to be seen");
    let config = server_of(&ca, &[]);
    // TLS 1.2 sends the request in plaintext, and the server's own certificate names its issuer:
    // have another CA sign that.
    let other = Ca::new("other CA");
    let bundle = format!("{}{}", other.server().pem(), ca.cert);
    let hidden = tls_config(&bundle, &[]);
    for (config, seen) in [(config, true), (hidden, false)] {
        let mut server = rustls::ServerConnection::new(config.server()).unwrap();
        let client = client(&ca, &[&TLS12], None);
        let mut client =
            rustls::ClientConnection::new(client, "localhost".try_into().unwrap()).unwrap();
        let (mut hello, mut answer) = (Vec::new(), Vec::new());
        client.write_tls(&mut hello).unwrap();
        server.read_tls(&mut hello.as_slice()).unwrap();
        server.process_new_packets().unwrap();
        while server.wants_write() {
            server.write_tls(&mut answer).unwrap();
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert_eq!(answer.contains("not to be seen"), seen);
    }
}

#[test]
fn what_is_not_tls_is_called_so_and_ends_the_handshake() {
    let ca = Ca::new("test CA");
    for bytes in [&b"IHAVEOPT\0\0\0\x07\0\0\0\0"[..], b"GET / HTTP/1.1\r\n\r\n", &[0; 64]] {
        let mut server = rustls::ServerConnection::new(server_of(&ca, &[]).server()).unwrap();
        server.read_tls(&mut &*bytes).unwrap();
        let failure = HandshakeFailure::from(&server.process_new_packets().unwrap_err());
        assert_eq!(failure.cause, Cause::NotTls, "{failure}");
    }
}

/// RUSTSEC-2024-0399 was a panic on a first message in pieces.
#[test]
fn a_hello_that_comes_byte_by_byte_is_understood() {
    let ca = Ca::new("test CA");
    let leaf = ca.client("good");
    let mut server = rustls::ServerConnection::new(server_of(&ca, &[]).server()).unwrap();
    let client = client(&ca, &[&TLS13], show(&leaf));
    let mut client =
        rustls::ClientConnection::new(client, "localhost".try_into().unwrap()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    for byte in hello {
        assert_eq!(server.read_tls(&mut &[byte][..]).unwrap(), 1);
        server.process_new_packets().unwrap();
    }
    assert!(server.wants_write());
}
