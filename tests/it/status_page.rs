//! The status page in a real browser, shown by the real server while real clients come and go.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::support::browser::Browser;
use crate::support::client::Client as NbdClient;
use crate::support::fixtures;
use crate::support::pki::{Maker, Pki, text};
use crate::support::process::{Client, Process, RunningClient};
use crate::support::watched::Watched;

/// All that may move on the page: half of what counts as good for the time of a whole visit.
const LAYOUT_SHIFT_MAX: f64 = 0.05;

/// Reads until its standard input is closed.
const READ_ON: &str = "\
import select, sys
while not select.select([sys.stdin], [], [], 0.005)[0]:
    h.pread(262144, 0)";

/// Does nothing until its standard input is closed.
const STAY: &str = "import sys; sys.stdin.read()";

const STATE: &str = "return document.getElementById('state-text').textContent";

const ATTENTION: &str = "return document.getElementById('attention-text').textContent";

/// For each client that is listed, the texts of the parts of its row.
const CLIENTS: &str = "\
return [...document.querySelectorAll('#clients tbody tr')].map((row) => Object.fromEntries(
  [...row.querySelectorAll('[data-part]')].map((part) => [part.dataset.part, part.textContent])))";

/// Texts with less contrast than WCAG 2.2 demands at level AA.
const ILLEGIBLE: &str = "
const parse = (color) => color.match(/[\\d.]+/g).map(Number);
const luminance = (color) => parse(color).slice(0, 3)
  .map((part) => part / 255)
  .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
  .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
const isClear = (color) => parse(color)[3] === 0;
const paper = (element) => {
  const color = getComputedStyle(element).backgroundColor;
  return isClear(color) && element.parentElement ? paper(element.parentElement) : color;
};
const bad = [];
for (const element of document.body.querySelectorAll('*')) {
  const hasText = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (!hasText || !element.checkVisibility() || element.closest('template, noscript')) continue;
  const style = getComputedStyle(element);
  const size = parseFloat(style.fontSize);
  const isLarge = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
  const [low, high] = [luminance(style.color), luminance(paper(element))].sort((a, b) => a - b);
  const contrast = (high + 0.05) / (low + 0.05);
  if (contrast < (isLarge ? 3 : 4.5)) bad.push(`${element.textContent.trim()}: ${contrast}`);
}
return bad;";

#[test]
fn a_client_appears_with_its_name_is_seen_reading_and_vanishes() {
    let pki = Pki::new(Maker::OpensslEcdsa);
    let [alice, bob] = ["alice", "bob"].map(|name| pki.good(name));
    let certificate = pki.path("srv.pem");
    let export = format!("disk={},desc=golden image", text(&fixtures::path("v082-ext4.hxz")));
    let watched = Watched::start(&["--tls-cert", text(&certificate), &export]);
    let port = watched.process.port();
    let mut browser = Browser::start();
    browser.look(1280, 900, "light");
    browser.open(watched.address);
    browser.wait_for(STATE, |state| state == "Serving");
    assert_eq!(browser.run(CLIENTS), json!([]));
    let is_empty = "return document.getElementById('clients-empty').checkVisibility()";
    assert_eq!(browser.run(is_empty), true);
    let shown = browser.run("return document.body.innerText").to_string();
    for words in ["golden image", "CA", "in 29 days", "renew soon", "Nobody has been turned away"] {
        assert!(shown.contains(words), "{words}: {shown}");
    }

    let bob = nbdsh(&bob.uri(port, "disk"), STAY);
    browser.wait_for(CLIENTS, |rows| row(rows, "bob").is_some());
    let alice = nbdsh(&alice.uri(port, "disk"), READ_ON);
    let is_at = |rows: &Value, name, rate: &str| {
        row(rows, name).is_some_and(|row| row["throughput"].as_str().unwrap().ends_with(rate))
    };
    let rows = browser
        .wait_for(CLIENTS, |rows| is_at(rows, "alice", " MiB/s") && is_at(rows, "bob", "0 B/s"));
    let of_alice = row(&rows, "alice").unwrap();
    for (part, expected) in [("export", "disk"), ("tls", "TLS 1.3"), ("peer", "127.0.0.1:")] {
        assert!(of_alice[part].as_str().unwrap().contains(expected), "{of_alice}");
    }
    assert_eq!(browser.run(is_empty), false);
    // The charts say it in words, too, for who cannot see them.
    for (chart, words) in [("throughput", "MiB/s at most"), ("latency", "99 % within")] {
        let label = format!("return document.getElementById('{chart}-chart').ariaLabel");
        browser.wait_for(&label, |label| label.as_str().unwrap().contains(words));
    }
    // So does what is under the cursor, which arrow keys move.
    let readout = "return document.getElementById('throughput-readout').textContent";
    let newest = browser.run(readout);
    browser.run(
        "const chart = document.getElementById('throughput-chart');
        const event = () => new KeyboardEvent('keydown', { key: 'ArrowLeft' });
        chart.dispatchEvent(event()); chart.dispatchEvent(event());",
    );
    browser.wait_for(readout, |earlier| *earlier != newest);
    browser.run("document.getElementById('throughput-chart').dispatchEvent(new Event('blur'))");

    let mallory = pki.of_another_ca("mallory").uri(port, "disk");
    Client::new("nbdinfo").args(["--size", &mallory]).run().failed();
    let refusals = "return document.querySelector('#refusals tbody').textContent";
    browser.wait_for(refusals, |text| text.as_str().unwrap().contains("127.0.0.1"));
    for name in ["carol", "dave", "erin"] {
        let client = nbdsh(&pki.good(name).uri(port, "disk"), STAY);
        browser.wait_for(CLIENTS, |rows| row(rows, name).is_some());
        client.finish().succeeded();
        browser.wait_for(CLIENTS, |rows| row(rows, name).is_none());
    }
    let shifts = browser.run("return witness.shifts");
    let moved: f64 = shifts.as_array().unwrap().iter().map(|shift| shift.as_f64().unwrap()).sum();
    assert!(moved < LAYOUT_SHIFT_MAX, "{moved}: {shifts}");

    for (picture, width, height, scheme) in [
        ("light", 1280, 900, "light"),
        ("dark", 1280, 900, "dark"),
        ("phone-light", 360, 780, "light"),
        ("phone-dark", 360, 780, "dark"),
    ] {
        browser.look(width, height, scheme);
        // Two looks of the page at the server: what is drawn is what came of the change.
        sleep(Duration::from_secs(4));
        browser.picture(&pictures().join(picture).with_extension("png"));
        assert_eq!(browser.run(ILLEGIBLE), json!([]), "{picture}");
        let wide = browser.run("return document.documentElement.scrollWidth");
        assert!(wide.as_u64().unwrap() <= width.into(), "{picture} is {wide} wide");
    }

    for client in [alice, bob] {
        client.finish().succeeded();
    }
    browser.wait_for(CLIENTS, |rows| *rows == json!([]));
    expect_quiet(&mut browser, watched.address);
}

#[test]
fn what_clients_and_files_call_themselves_is_text_and_never_runs() {
    let pki = Pki::new(Maker::OpensslEcdsa);
    let markup = "<img src=x onerror=alert(1)>";
    let eve = pki.named("eve", &format!("/CN={markup}\u{202e}evil\u{7}"), "client");
    let disk = fixtures::path("v082-onebyte.hxz");
    let config = pki.write(
        "hexz-nbd.toml",
        format!(
            "[[export]]\nname = \"disk\"\npath = \"{disk}\"\ndescription = '''{markup}<script>\
             alert(2)</script>'''\n[[export]]\nname = \"{markup}\\u202e\"\n\
             path = \"{disk}\"\n",
            disk = text(&disk),
        ),
    );
    let certificate = pki.path("srv.pem");
    let watched = Watched::start(&["--config", text(&config), "--tls-cert", text(&certificate)]);
    let mut browser = Browser::start();
    browser.open(watched.address);
    let eve = nbdsh(&eve.uri(watched.process.port(), "disk"), STAY);
    let rows = browser.wait_for(CLIENTS, |rows| row(rows, markup).is_some());
    let identity = rows[0]["identity"].to_string();
    assert!(!identity.contains(['\u{202e}', '\u{7}']), "{identity}");
    let exports = browser.run("return document.querySelector('#exports tbody').textContent");
    let exports = exports.as_str().unwrap();
    for words in [markup, "<script>alert(2)</script>", "\\u{202e}"] {
        assert!(exports.contains(words), "{words}: {exports}");
    }
    let made = browser.run("return document.querySelectorAll('td img, td script').length");
    assert_eq!(made, 0);
    eve.finish().succeeded();
    expect_quiet(&mut browser, watched.address);
}

#[tokio::test]
async fn a_server_that_stops_and_comes_back_is_shown_to_have() {
    let file = fixtures::path("v082-lz4-default.hxz");
    let mut watched = Watched::start(&["--drain-timeout", "1min", text(&file)]);
    let mut browser = Browser::start();
    browser.open(watched.address);
    browser.wait_for(STATE, |state| state == "Serving");
    assert_eq!(browser.run(ATTENTION), "Nothing needs attention.");
    let mut client = NbdClient::connect((Ipv4Addr::LOCALHOST, watched.process.port()).into()).await;
    client.greet(3).await;
    client.go("v082-lz4-default").await;
    // More than the sockets hold, and not taken.
    for cookie in 0..4 {
        client.request(0, 0, cookie, 0, 3_000_000).await;
    }
    browser.wait_for(CLIENTS, |rows| rows[0]["reads"] != "0 reads" && rows[0].is_object());
    watched.process.signal(Signal::TERM);
    browser.wait_for(STATE, |state| state.as_str().unwrap().starts_with("Draining"));
    for _ in 0..4 {
        client.reply(3_000_000).await;
    }
    drop(client);
    assert!(watched.process.ended().success());
    browser.wait_for(STATE, |state| state == "Not reachable");
    let attention = browser.run(ATTENTION).to_string();
    assert!(attention.contains("does not answer") && attention.contains(" old"), "{attention}");
    let exports = browser.run("return document.querySelector('#exports tbody').textContent");
    assert!(exports.as_str().unwrap().contains("v082-lz4-default"), "{exports}");

    let address = watched.address.to_string();
    let _server = Process::start(["--status-listen", &address, text(&file)]);
    browser.wait_for(STATE, |state| state == "Serving");
    browser.wait_for(ATTENTION, |attention| attention == "Nothing needs attention.");
}

#[test]
fn the_page_may_load_its_own_parts_only_and_its_parts_nothing() {
    let watched = Watched::start(&[text(&fixtures::path("v082-onebyte.hxz"))]);
    let (code, head, body) = watched.get("/");
    assert_eq!(code, 200);
    assert!(head.contains("content-type: text/html; charset=utf-8"), "{head}");
    let policy = head.lines().find_map(|line| line.strip_prefix("content-security-policy: "));
    let policy: BTreeSet<_> = policy.unwrap().split("; ").collect();
    let expected = "default-src 'none'|script-src 'self'|style-src 'self'|img-src 'self'|\
                    connect-src 'self'|base-uri 'none'|form-action 'none'|frame-ancestors 'none'";
    assert_eq!(policy, expected.split('|').collect());
    assert_eq!(head.matches("content-security-policy").count(), 1);
    assert!(head.contains("cache-control: no-store") && head.contains("x-frame-options: deny"));
    let parts = body.split("=\"page/").skip(1).map(|rest| rest.split('"').next().unwrap());
    let parts: BTreeSet<_> = parts.chain(["charts.js", "format.js", "table.js"]).collect();
    assert_eq!(parts.len(), 9, "{parts:?}");
    for part in parts {
        let (code, head, _) = watched.get(&format!("/page/{part}"));
        let kind = match part.rsplit_once('.').unwrap().1 {
            "css" => "text/css",
            "js" => "text/javascript",
            "svg" => "image/svg+xml",
            "txt" => "text/plain",
            other => panic!("{other}"),
        };
        assert_eq!((code, head.contains(&format!("content-type: {kind}"))), (200, true), "{head}");
        assert!(head.contains("content-security-policy: default-src 'none'; frame-anc"), "{head}");
        assert!(head.contains("x-content-type-options: nosniff"), "{head}");
    }
    // The library is the one that its note says.
    let note = include_str!("../../src/server/status_page/uplot/README.md");
    for (part, file) in [
        ("uplot.js", "uPlot.iife.min.js"),
        ("uplot.css", "uPlot.min.css"),
        ("uplot.txt", "LICENSE"),
    ] {
        let (_, _, contents) = watched.get(&format!("/page/{part}"));
        let digest: String =
            Sha256::digest(contents).iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(note.contains(&format!("| `{file}` | `{digest}` |")), "{file}: {digest}");
    }
}

/// A client that has connected and does what the script says.
fn nbdsh(uri: &str, script: &str) -> RunningClient {
    let script = format!("h.set_uri_allow_local_file(True)\nh.connect_uri({uri:?})\n{script}");
    Client::new("nbdsh").args(["-c", &script]).start()
}

fn row<'a>(rows: &'a Value, name: &str) -> Option<&'a Value> {
    let is_it = |row: &&Value| row["identity"].as_str().unwrap().contains(name);
    rows.as_array().unwrap().iter().find(is_it)
}

/// Where pictures of the page go, for people to look at.
fn pictures() -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("screenshots");
    fs::create_dir_all(&directory).unwrap();
    directory
}

/// Nothing on the page ran or was loaded that should not, and nothing went wrong.
fn expect_quiet(browser: &mut Browser, address: SocketAddr) {
    let witness = browser.run("return witness");
    for seen in ["violations", "errors"] {
        assert_eq!(witness[seen], json!([]), "{seen}");
    }
    assert_eq!(witness["dialogs"], 0);
    let (console, urls) = browser.log();
    assert!(console.is_empty(), "{console:#?}");
    let own = format!("http://{address}/");
    let asked = urls.iter().filter(|url| !url.starts_with("data:"));
    let asked = asked.map(|url| url.strip_prefix(&own).unwrap_or_else(|| panic!("{url}")));
    let asked: BTreeSet<_> = asked.collect();
    assert!(asked.contains("status.json") && asked.contains("page/page.js"), "{asked:?}");
}
