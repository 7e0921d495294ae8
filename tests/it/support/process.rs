//! The real binary as a server, and real clients, each in a process of its own.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufRead as _, BufReader, ErrorKind, Read, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// The program under test.
pub(crate) const HEXZ_NBD: &str = env!("CARGO_BIN_EXE_hexz-nbd");

/// After this a process hangs. Far more than any of them needs on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at whether a process has ended.
const POLL: Duration = Duration::from_millis(5);

/// Where Debian has the clients. First, so that `nbdsh` gets the Python that has libnbd, and
/// whole, because `/usr/sbin` is not on the path of everybody.
const CLIENT_PATH: &str = "/usr/bin:/usr/sbin:/bin:/sbin";

/// Clients and the Debian packages that have them. `scripts/setup` installs these.
const PACKAGES: &[(&str, &str)] = &[
    ("debugfs", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("fio", "fio"),
    ("nbd-client", "nbd-client"),
    ("nbdcopy", "libnbd-bin"),
    ("nbdinfo", "libnbd-bin"),
    ("nbdkit", "nbdkit"),
    ("nbdsh", "python3-libnbd"),
    ("openssl", "openssl"),
    ("python3", "python3"),
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("sfdisk", "fdisk"),
];

/// A server that listens on a port and on a Unix socket of its own. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    log: Arc<Log>,
    log_reader: Option<JoinHandle<()>>,
    port: u16,
    directory: TempDir,
}

/// What the server has said so far.
#[derive(Debug, Default)]
struct Log {
    content: Mutex<LogContent>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct LogContent {
    /// JSON objects. What is not JSON, like a panic, is a string.
    lines: Vec<Value>,
    ended: bool,
}

impl Process {
    /// Starts the server with these arguments beside those that say where to listen and how to
    /// log, and waits until clients can connect.
    pub(crate) fn start(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        Self::start_from(Command::new(HEXZ_NBD), arguments)
    }

    /// As [`Process::start`], with a command that starts the server when it is given arguments.
    pub(crate) fn start_from(
        mut command: Command,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        command
            .args(["--log-format", "json", "--listen", "127.0.0.1:0", "--unix"])
            .arg(socket_in(&directory))
            .args(arguments);
        let mut process = Self::spawn(command, directory);
        // The Unix socket is the last to be announced.
        process.wait_until(|line| endpoint(line).starts_with("unix:"), 1);
        process.port = process
            .log()
            .iter()
            .find_map(|line| endpoint(line).strip_prefix("127.0.0.1:")?.parse().ok())
            .unwrap();
        process
    }

    /// Runs a command that starts the server as it is, with its log for people, and waits until
    /// clients can connect to its one port.
    pub(crate) fn start_as_written(command: Command) -> Self {
        let mut process = Self::spawn(command, tempfile::tempdir().unwrap());
        let port = |line: &Value| {
            let (_, endpoint) = line.as_str()?.split_once(" listening endpoint=")?;
            endpoint.rsplit_once(':')?.1.parse().ok()
        };
        process.wait_until(|line| port(line).is_some(), 1);
        process.port = process.log().iter().find_map(port).unwrap();
        process
    }

    fn spawn(mut command: Command, directory: TempDir) -> Self {
        let stdout = File::create(directory.path().join("stdout")).unwrap();
        let mut child =
            command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Log::default());
        let stderr = child.stderr.take().unwrap();
        let log_reader = {
            let log = Arc::clone(&log);
            std::thread::spawn(move || log.fill(stderr))
        };
        Self { child, log, log_reader: Some(log_reader), port: 0, directory }
    }

    /// Number of the process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The Unix socket.
    pub(crate) fn socket(&self) -> PathBuf {
        socket_in(&self.directory)
    }

    /// The URI of an export over TCP.
    pub(crate) fn uri(&self, export: &str) -> String {
        format!("nbd://127.0.0.1:{}/{export}", self.port)
    }

    /// The URI of an export over the Unix socket.
    pub(crate) fn unix_uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket().display())
    }

    /// What the server has printed on its standard output so far.
    pub(crate) fn stdout(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("stdout")).unwrap()
    }

    /// What the server has logged so far.
    pub(crate) fn log(&self) -> Vec<Value> {
        self.log.lock().lines.clone()
    }

    /// Waits until there are so many lines with that message in the log, which may come a little
    /// later than what they tell of.
    pub(crate) fn wait_for(&self, message: &str, times: usize) {
        self.wait_until(|line| line["message"] == message, times);
    }

    /// Waits for such a line behind the first `seen` ones, and returns it.
    pub(crate) fn wait_behind(&self, seen: usize, wanted: impl Fn(&Value) -> bool) -> Value {
        let before = self.log().iter().take(seen).filter(|line| wanted(line)).count();
        self.wait_until(&wanted, before + 1);
        self.log().into_iter().skip(seen).find(|line| wanted(line)).unwrap()
    }

    /// Waits until there are so many lines of that kind.
    pub(crate) fn wait_until(&self, wanted: impl Fn(&Value) -> bool, times: usize) {
        let is_there = |content: &LogContent| {
            content.lines.iter().filter(|line| wanted(line)).count() >= times
        };
        let content = self.log.lock();
        let (content, waited) = self
            .log
            .grown
            .wait_timeout_while(content, PATIENCE, |content| !content.ended && !is_there(content))
            .unwrap_or_else(PoisonError::into_inner);
        let is_running = if waited.timed_out() { "is still running" } else { "has ended" };
        assert!(
            is_there(&content),
            "hexz-nbd {is_running} and its log is not what it should be: {:#?}",
            content.lines,
        );
    }

    /// The most memory that the server has had so far, in bytes.
    pub(crate) fn peak_memory_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Asks the server to read everything anew, as a service manager does.
    pub(crate) fn reload(&self) {
        self.signal(Signal::HUP);
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Asks the server to stop, as a service manager does, and waits until it has.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.ended()
    }

    /// Waits for the end of the server.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let status = wait(&mut self.child);
        status.unwrap_or_else(|| panic!("hexz-nbd does not end: {:#?}", self.log()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.log_reader.take() {
            let _ = reader.join();
        }
    }
}

impl Log {
    fn lock(&self) -> std::sync::MutexGuard<'_, LogContent> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until the server ends, so that it never waits for somebody to read its log.
    fn fill(&self, stderr: impl Read) {
        for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
            let line = serde_json::from_slice(&line)
                .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&line)));
            self.lock().lines.push(line);
            self.grown.notify_all();
        }
        self.lock().ended = true;
        self.grown.notify_all();
    }
}

fn socket_in(directory: &TempDir) -> PathBuf {
    directory.path().join("socket")
}

fn endpoint(line: &Value) -> &str {
    line["endpoint"].as_str().unwrap_or_default()
}

/// A command that is run to its end.
#[derive(Debug)]
pub(crate) struct Client {
    program: &'static str,
    command: Command,
}

/// A command that has begun. Killed when dropped.
#[derive(Debug)]
pub(crate) struct RunningClient {
    program: &'static str,
    child: Child,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
}

/// What came of a command.
#[derive(Debug)]
pub(crate) struct Output {
    program: &'static str,
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Client {
    pub(crate) fn new(program: &'static str) -> Self {
        let mut path = OsString::from(CLIENT_PATH);
        if let Some(rest) = std::env::var_os("PATH") {
            path.push(":");
            path.push(rest);
        }
        let mut command = Command::new(program);
        command.env("PATH", path).env("LC_ALL", "C.UTF-8");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { program, command }
    }

    pub(crate) fn arg(self, argument: impl AsRef<OsStr>) -> Self {
        self.args([argument])
    }

    pub(crate) fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(arguments);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn current_dir(mut self, directory: &Path) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// What the command reads on its standard input.
    pub(crate) fn input(mut self, bytes: &[u8]) -> Self {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        self.command.stdin(file);
        self
    }

    /// Runs the command to its end.
    pub(crate) fn run(self) -> Output {
        self.start().finish()
    }

    /// Starts the command. Its standard input is empty and stays open until
    /// [`RunningClient::finish`].
    pub(crate) fn start(mut self) -> RunningClient {
        let program = self.program;
        let mut child = match self.command.spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == ErrorKind::NotFound => panic!("{}", missing(program)),
            Err(error) => panic!("cannot run {program}: {error}"),
        };
        let stdout = child.stdout.take().map(drain);
        let stderr = child.stderr.take().map(drain);
        RunningClient { program, child, stdout, stderr }
    }
}

impl RunningClient {
    /// Closes the standard input of the command and waits for its end.
    pub(crate) fn finish(mut self) -> Output {
        let program = self.program;
        drop(self.child.stdin.take());
        let status = wait(&mut self.child);
        let _ = self.child.kill();
        let mut outputs = [self.stdout.take(), self.stderr.take()]
            .map(|reader| reader.map(|reader| reader.join().unwrap()).unwrap_or_default());
        let [stdout, stderr] = &mut outputs;
        let stderr = String::from_utf8_lossy(stderr).into_owned();
        let Some(status) = status else {
            panic!("{program} did not end within {PATIENCE:?}: {stderr}");
        };
        Output { program, status, stdout: std::mem::take(stdout), stderr }
    }
}

impl Drop for RunningClient {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Output {
    /// Exit code 0, or the test ends here.
    pub(crate) fn succeeded(self) -> Self {
        let Self { program, status, stderr, .. } = &self;
        assert!(status.success(), "{program}: {status}: {stderr}");
        self
    }

    /// An exit code that tells of a failure, or the test ends here. A signal is none.
    pub(crate) fn failed(self) -> Self {
        let Self { program, status, stderr, .. } = &self;
        assert!(status.code().is_some_and(|code| code != 0), "{program}: {status}: {stderr}");
        self
    }

    /// Standard output as text.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    /// Standard output as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|error| panic!("{}: {error}: {}", self.program, self.text()))
    }
}

/// The binary with arguments that must keep it from serving: its exit code and its only line.
pub(crate) fn refused(arguments: &[&str]) -> (i32, String) {
    let output = Client::new(HEXZ_NBD).args(arguments).run().failed();
    assert!(output.stdout.is_empty(), "{arguments:?}: {}", output.text());
    (output.status.code().unwrap(), output.stderr)
}

fn drain(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// Waits for the end of a process, but not for ever.
fn wait(child: &mut Child) -> Option<ExitStatus> {
    let polls = PATIENCE.as_millis() / POLL.as_millis();
    for _ in 0..polls {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(POLL);
    }
    None
}

fn missing(program: &str) -> String {
    let package = PACKAGES.iter().find(|(name, _)| *name == program).map(|(_, package)| *package);
    let Some(package) = package else { return format!("there is no {program}") };
    format!(
        "{program} is not installed, and this test is nothing without it: run scripts/setup, or \
         install the Debian package {package}"
    )
}

#[test]
#[should_panic(expected = "there is no client-of-another-world")]
fn a_missing_client_fails_the_test() {
    Client::new("client-of-another-world").run();
}

#[test]
fn the_message_about_a_missing_client_names_its_package_and_the_script() {
    let message = missing("nbdsh");
    assert!(message.contains("python3-libnbd") && message.contains("scripts/setup"), "{message}");
}

/// Packs an image with these options into a snapshot beside it.
pub(crate) fn pack(image: &Path, options: &[&str]) -> PathBuf {
    let snapshot = image.with_extension("hxz");
    let mut command = Command::new(HEXZ_NBD);
    let packed = command.arg("pack").args(options).args([image, &snapshot]).output().unwrap();
    assert!(packed.status.success(), "{packed:?}");
    snapshot
}
