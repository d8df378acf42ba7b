//! A receiver to try out: `demo-server --token … --hmac-secret …`. It is `siem-server serve` with the settings
//! of its options.

mod args;

use std::{error::Error, process::ExitCode};

use args::Args;
use clap::Parser as _;
use siem_server::{init_log, run::Process};

fn main() -> ExitCode {
    let args = Args::parse();
    let settings = match args.settings() {
        Ok(settings) => settings,
        Err(problems) => {
            problems.iter().for_each(|problem| eprintln!("error: {problem}"));
            return ExitCode::from(2);
        }
    };
    init_log(&settings.log);
    let keys = match args.keys() {
        Ok(keys) => keys,
        Err(error) => return fail(&error, 2),
    };
    match Process::new(settings, keys).run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

fn fail(error: &dyn Error, code: u8) -> ExitCode {
    let mut text = format!("error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!("\n  caused by: {error}"));
        cause = error.source();
    }
    eprintln!("{text}");
    ExitCode::from(code)
}
