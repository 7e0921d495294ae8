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
fn the_printed_commands_read_the_built_in_file_system() {
    let mut demo = Command::new(HEXZ_NBD);
    demo.arg("demo");
    let server = Process::start_from(demo, [] as [&str; 0]);
    let commands = printed_commands(&server);
    // Over TCP and over the Unix socket.
    let programs: Vec<&str> = commands.iter().map(|command| command[0].as_str()).collect();
    assert_eq!(programs, ["nbdinfo", "nbdcopy", "qemu-img"].repeat(2));
    for command in &commands {
        let directory = tempfile::tempdir().unwrap();
        let program = ["nbdinfo", "nbdcopy", "qemu-img"]
            .into_iter()
            .find(|program| *program == command[0])
            .unwrap();
        let output = Client::new(program)
            .args(&command[1..])
            .current_dir(directory.path())
            .run()
            .succeeded();
        if program == "nbdinfo" {
            assert!(output.text().contains("ext4"), "{}", output.text());
            continue;
        }
        let image = directory.path().join("demo.img");
        Client::new("e2fsck").arg("-fn").arg(&image).run().succeeded();
        let readme = Client::new("debugfs").args(["-R", "cat /README.txt"]).arg(&image).run();
        assert!(readme.succeeded().text().contains("over the network block device"));
    }
}
