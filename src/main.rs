//! The `hexz-nbd` command: parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    hexz_nbd::cli::main()
}
