//! Runs the corpus through each reader: unchanged, truncated at every length, and with every byte changed.

use std::fs;
use std::path::{Path, PathBuf};

use super::super::TARGETS;

/// Larger inputs would take minutes: they are truncated and changed at this many positions.
const PLACES: usize = 400;
/// The same for targets where one input takes milliseconds, because a file is written or a text is generated and parsed
/// again.
const PLACES_OF_SLOW: usize = 60;
const SLOW: [&str; 2] = ["import", "ledger"];

pub(super) fn directory(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

fn inputs(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let files = fs::read_dir(directory(target)).unwrap().map(|entry| entry.unwrap().path());
    let mut inputs: Vec<(PathBuf, Vec<u8>)> = files.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    inputs.sort();
    inputs
}

fn positions(target: &str, length: usize) -> impl Iterator<Item = usize> + use<> {
    let most = if SLOW.contains(&target) { PLACES_OF_SLOW } else { PLACES };
    // An odd step, so that every byte of a word is reached.
    (0..length).step_by(length.div_ceil(most) | 1)
}

/// Prints the input on a panic.
struct Input<'a>(&'a Path, String);

impl Drop for Input<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the input was {}, {}", self.0.display(), self.1);
        }
    }
}

fn run_mutations(target: &str) {
    let (_, read) = *TARGETS.iter().find(|(name, _)| *name == target).unwrap();
    let inputs = inputs(target);
    assert!(!inputs.is_empty(), "{target} has no corpus");
    for (path, input) in inputs {
        let mut context = Input(&path, "as it is".to_owned());
        read(&input);
        for end in positions(target, input.len()) {
            context.1 = format!("cut to {end} bytes");
            read(&input[..end]);
        }
        let mut changed = input.clone();
        for position in positions(target, input.len()) {
            for change in [0xff, 0x01, 0x80] {
                context.1 = format!("byte {position} changed by {change:#04x}");
                changed[position] ^= change;
                read(&changed);
                changed[position] = input[position];
            }
        }
    }
}

macro_rules! targets {
    ($($name:ident)*) => {
        const TESTED: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() {
                run_mutations(stringify!($name));
            }
        )*
    };
}

// A separate test for each, so that they run in parallel.
targets! {
    capture config control dns_names fleet helpers host_files hosts_deny ignore_file import ledger nft rtnetlink sock_diag
}

#[test]
fn every_reader_has_fuzz_target_and_corpus() {
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    for (name, _) in TARGETS {
        assert!(TESTED.contains(&name), "{name} has no test");
        let program = fs::read_to_string(programs.join(format!("{name}.rs"))).unwrap();
        assert!(program.contains(&format!("fuzzing::{name}(input)")), "{program}");
    }
    let count = fs::read_dir(programs).unwrap().count();
    assert_eq!(count, TARGETS.len() + ["decode", "observe"].len());
}
