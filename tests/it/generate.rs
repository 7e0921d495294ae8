//! Man pages and completions.

use std::fs;

use crate::support::process::{Client, HEXZ_NBD};

#[test]
fn every_command_has_a_man_page_and_bash_completes_them() {
    let directory = tempfile::tempdir().unwrap();
    Client::new(HEXZ_NBD).arg("generate").arg(directory.path()).run().succeeded();
    let page = |name: &str| {
        let file = directory.path().join("man/man1").join(format!("hexz-nbd{name}.1"));
        fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
    };
    assert!(page("").contains("max\\-connections"), "{}", page(""));

    let complete = directory.path().join("bash/hexz-nbd");
    // What bash does at the second word: it calls the function that is registered for the command.
    let script = r#"source "$1"; set -- $(complete -p hexz-nbd)
        while [[ $1 != -F ]]; do shift; done
        COMP_WORDS=(hexz-nbd ""); COMP_CWORD=1; "$2" hexz-nbd "" hexz-nbd
        printf '%s
' "${COMPREPLY[@]}""#;
    let completed = Client::new("bash").args(["-c", script, "-"]).arg(&complete).run().succeeded();
    for command in ["pack", "inspect", "verify", "keygen", "sign", "demo", "certs", "generate"] {
        assert!(completed.text().lines().any(|line| line == command), "{}", completed.text());
        let _ = page(&format!("-{command}"));
    }
    for command in ["init", "server", "client", "revoke", "show"] {
        let _ = page(&format!("-certs-{command}"));
    }
    for file in ["zsh/_hexz-nbd", "fish/hexz-nbd.fish"] {
        let text = fs::read_to_string(directory.path().join(file)).unwrap();
        assert!(text.contains("max-connections"), "{file}");
    }
}
