//! The `containerctl` program: controller and command line in one.

use std::process::ExitCode;

fn main() -> ExitCode {
    containerctl::cli::main()
}
