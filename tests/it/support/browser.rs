//! Headless Chromium, driven over WebDriver by Debian's Selenium.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

/// Far more than a page that asks every two seconds needs, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A browser with one page. Ends when dropped.
pub(crate) struct Browser {
    child: Child,
    /// Its end is that of the browser.
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Browser {
    pub(crate) fn start() -> Self {
        // The Python that has Debian's modules.
        let mut child = Command::new("/usr/bin/python3")
            .args(["-c", include_str!("browser.py")])
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is not there: run scripts/setup");
        let commands = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, commands, answers }
    }

    pub(crate) fn open(&mut self, address: SocketAddr) {
        self.say(&json!({ "do": "open", "url": format!("http://{address}/") }));
    }

    /// The size of the window in CSS pixels, and whether `light` or `dark` is preferred.
    pub(crate) fn look(&mut self, width: u32, height: u32, scheme: &str) {
        self.say(&json!({ "do": "look", "width": width, "height": height, "scheme": scheme }));
    }

    /// What a script returns.
    pub(crate) fn run(&mut self, script: &str) -> Value {
        self.say(&json!({ "do": "run", "script": script }))
    }

    /// Waits until a script returns what is wanted, and returns that.
    pub(crate) fn wait_for(&mut self, script: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            let value = self.run(script);
            if wanted(&value) {
                return value;
            }
            assert!(Instant::now() < end, "{script} is {value:#}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// All that is on the page, not only what is in the window.
    pub(crate) fn picture(&mut self, path: &Path) {
        self.say(&json!({ "do": "picture", "path": path }));
    }

    /// Lines of the console and URLs that were asked for, since the last time.
    pub(crate) fn log(&mut self) -> (Vec<String>, Vec<String>) {
        let log = self.say(&json!({ "do": "log" }));
        let strings = |name: &str| serde_json::from_value(log[name].clone()).unwrap();
        (strings("console"), strings("urls"))
    }

    fn say(&mut self, command: &Value) -> Value {
        let mut line = command.to_string();
        line.push('\n');
        let mut answer = String::new();
        let said = self.commands.as_mut().unwrap().write_all(line.as_bytes());
        let heard = self.answers.read_line(&mut answer);
        assert!(
            said.is_ok() && heard.is_ok_and(|length| length > 0),
            "no browser, see above for why. It needs chromium, chromium-driver and \
             python3-selenium: run scripts/setup"
        );
        serde_json::from_str::<Value>(&answer).unwrap()["value"].take()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        drop(self.commands.take());
        let _ = self.child.wait();
    }
}
