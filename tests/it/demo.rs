//! The demonstration: what it prints is what works.

use std::process::Command;

use crate::support::process::{Client, HEXZ_NBD, Process};

/// The commands that it tells to type, of those that need no root.
fn printed_commands(server: &Process) -> Vec<Vec<String>> {
    let words = |line: &str| line.split_whitespace().map(|w| w.trim_matches('\'').into()).collect();
    let stdout = server.stdout();
    let lines = stdout.lines().filter_map(|line| line.strip_prefix("  "));
    lines.filter(|line| !line.starts_with("sudo")).map(words).collect()
}

#[test]
fn the_printed_commands_read_the_built_in_file_system_over_tls() {
    let mut demo = Command::new(HEXZ_NBD);
    demo.arg("demo");
    let mut server = Process::start_from(demo, [] as [&str; 0]);
    let commands = printed_commands(&server);
    run(&commands, 1);
    // Whoever comes without a certificate gets nothing.
    Client::new("nbdinfo").arg(server.uri("demo")).run().failed();

    let certificates = commands[0].iter().find_map(|word| word.split_once("tls-certificates="));
    let certificates = std::path::PathBuf::from(certificates.unwrap().1);
    assert!(certificates.exists());
    assert_eq!(server.terminate().code(), Some(0));
    assert!(!certificates.exists(), "the certificates outlive the demonstration");
}

#[test]
fn the_printed_commands_read_the_built_in_file_system_in_plaintext() {
    let mut demo = Command::new(HEXZ_NBD);
    demo.args(["demo", "--plain"]);
    let server = Process::start_from(demo, [] as [&str; 0]);
    // Over TCP and over the Unix socket.
    run(&printed_commands(&server), 2);
}

fn run(commands: &[Vec<String>], endpoints: usize) {
    let programs: Vec<&str> = commands.iter().map(|command| command[0].as_str()).collect();
    assert_eq!(programs, ["nbdinfo", "nbdcopy", "qemu-img"].repeat(endpoints));
    for command in commands {
        let directory = tempfile::tempdir().unwrap();
        let client = match command[0].as_str() {
            "nbdinfo" => Client::new("nbdinfo"),
            "nbdcopy" => Client::new("nbdcopy"),
            _ => Client::new("qemu-img"),
        };
        let output = client.args(&command[1..]).current_dir(directory.path()).run().succeeded();
        match command[0].as_str() {
            "nbdinfo" => assert!(output.text().contains("ext4"), "{}", output.text()),
            "nbdcopy" => {
                let image = directory.path().join("demo.img");
                Client::new("e2fsck").arg("-fn").arg(&image).run().succeeded();
                let readme = Client::new("debugfs").args(["-R", "cat /README.txt"]).arg(&image);
                let readme = readme.run().succeeded();
                assert!(readme.text().contains("over the network block device"));
            }
            _ => assert!(output.text().contains("16777216 bytes"), "{}", output.text()),
        }
    }
}
