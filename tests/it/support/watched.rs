//! A server whose status is shown, and a client of its HTTP.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::support::process::Process;

/// A server whose status is shown on a port of its own.
pub(crate) struct Watched {
    pub(crate) process: Process,
    /// Of the status.
    pub(crate) address: SocketAddr,
}

impl Watched {
    /// With these arguments beside the others.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let process = Process::start(["--status-listen", "127.0.0.1:0"].iter().chain(arguments));
        let address = process.log().iter().find_map(|line| {
            (line["message"] == "showing the status")
                .then(|| line["address"].as_str().unwrap().parse().unwrap())
        });
        Self { address: address.unwrap(), process }
    }

    /// Status code, head and body.
    pub(crate) fn get(&self, path: &str) -> (u16, String, String) {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let answer = self.say(request.as_bytes());
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let code = head.split(' ').nth(1).unwrap().parse().unwrap();
        (code, head.to_ascii_lowercase(), body.to_owned())
    }

    /// What is answered to these bytes.
    pub(crate) fn say(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// What is told as JSON.
    pub(crate) fn json(&self, path: &str) -> Value {
        let (code, _, body) = self.get(path);
        assert_eq!(code, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    /// Every sample of /metrics by its name and labels.
    pub(crate) fn metrics(&self) -> BTreeMap<String, f64> {
        let (code, head, body) = self.get("/metrics");
        assert_eq!(code, 200);
        assert!(
            head.contains("content-type: application/openmetrics-text; version=1.0.0"),
            "{head}"
        );
        assert!(body.ends_with("# EOF\n"), "{body}");
        let samples = body.lines().filter(|line| !line.starts_with('#'));
        let split = |line: &str| {
            let line = line.split(" # ").next().unwrap();
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        };
        samples.map(split).collect()
    }

    /// Waits until a number is as it should be: what a client is told comes before it is counted.
    pub(crate) fn wait_for(&self, name: &str, expected: f64) {
        self.wait_until(name, |value| value == expected);
    }

    /// Waits until a number is there, and as it should be.
    pub(crate) fn wait_until(&self, name: &str, is_right: impl Fn(f64) -> bool) {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let metrics = self.metrics();
            if metrics.get(name).is_some_and(|value| is_right(*value)) {
                return;
            }
            assert!(Instant::now() < end, "{name} is not what it should be: {metrics:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
