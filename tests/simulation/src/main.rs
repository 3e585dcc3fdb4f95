//! Runs the simulation and prints a table. See docs/simulation.md.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for a terminal")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use simulation::host::Profile;
use simulation::replay::{Position, replay};
use simulation::{Options, picture, run, table};

/// Simulates host-years with the built-in configuration and counts honest bans and detected scans.
#[derive(Parser)]
struct Args {
    /// Host-years: this many hosts run for a year each; a fraction shortens the year of a single host of each kind.
    #[arg(long, default_value_t = 5.0)]
    years: f64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Multiplies the frequency of restarts, mistakes and scans.
    #[arg(long, default_value_t = 1)]
    pace: u32,
    /// Writes the outcome to this file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Draws the outcome into this file as SVG.
    #[arg(long)]
    picture: Option<PathBuf>,
    /// Shows the cause of one honest ban, or a scan that was not detected; takes its SEED:PACE:HOST:STEP from the
    /// table.
    #[arg(long)]
    replay: Option<Position>,
}

const YEAR: Duration = Duration::from_secs(365 * 86_400);

fn main() -> ExitCode {
    let args = Args::parse();
    if !(0.001..=100_000.0).contains(&args.years) || args.pace == 0 {
        eprintln!("simulate: --years must be between 0.001 and 100000, and --pace at least 1");
        return ExitCode::from(2);
    }
    #[expect(clippy::cast_precision_loss, reason = "a few kinds")]
    let kinds = Profile::all().len() as f64;
    let hosts = args.years.max(kinds).round();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded above")]
    let mut options = Options::new(args.seed, hosts as u64, YEAR.mul_f64(args.years / hosts));
    options.pace = args.pace;
    if let Some(position) = args.replay {
        print!("{}", replay(&options, position));
        return ExitCode::SUCCESS;
    }
    let days = options.span.as_secs() / 86_400;
    let bar = ProgressBar::new(options.hosts * days);
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} days {eta}") {
        bar.set_style(style);
    }
    bar.set_message("simulating");
    let outcome = run(&options, || bar.inc(1));
    bar.finish_and_clear();
    print!("{}", table::text(&outcome, options.pace));
    let json = serde_json::to_vec_pretty(&outcome);
    let files = [
        args.json.map(|path| (path, json.map_err(std::io::Error::from))),
        args.picture.map(|path| (path, Ok(picture::svg(&outcome).into_bytes()))),
    ];
    for (path, contents) in files.into_iter().flatten() {
        if let Err(error) = contents.and_then(|contents| std::fs::write(&path, contents)) {
            eprintln!("simulate: cannot write {}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
