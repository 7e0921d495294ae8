//! `hexz-nbd generate`: man pages and completions, from what clap knows of the command line.

use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::cli::{CommandLine, Failure};

/// Write man pages and completions of shells.
///
/// Packages have them in their places already. After `cargo install`, these directories are for
/// MANPATH (`DIR/man`), bash (`DIR/bash`, beside others in bash-completion/completions), zsh
/// (`DIR/zsh`, for fpath) and fish (`DIR/fish`, for ~/.config/fish/completions).
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Directory for them. Made if it does not exist; files of these names in it are replaced
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Shells, the directory of each, and what a package calls the file if not as clap does.
const SHELLS: [(Shell, &str, Option<&str>); 3] = [
    // Completions are found by the name of the command alone.
    (Shell::Bash, "bash", Some("hexz-nbd")),
    (Shell::Zsh, "zsh", None),
    (Shell::Fish, "fish", None),
];

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let made = |directory: PathBuf| {
        fs::create_dir_all(&directory).map_err(|error| failed(&directory, &error))?;
        Ok::<_, Failure>(directory)
    };
    let pages = made(arguments.directory.join("man").join("man1"))?;
    clap_mangen::generate_to(CommandLine::command(), &pages)
        .map_err(|error| failed(&pages, &error))?;
    for (shell, name, file) in SHELLS {
        let directory = made(arguments.directory.join(name))?;
        let mut command = CommandLine::command();
        let written = clap_complete::generate_to(shell, &mut command, "hexz-nbd", &directory)
            .map_err(|error| failed(&directory, &error))?;
        if let Some(file) = file {
            let target = directory.join(file);
            fs::rename(&written, &target).map_err(|error| failed(&target, &error))?;
        }
    }
    Ok(())
}

fn failed(path: &Path, error: &std::io::Error) -> Failure {
    Failure::failed(format!("cannot write {}: {error}", path.display()))
}
