//! Runs the corpus through each reader: unchanged, truncated at every length, and with every byte changed.

use std::fs;
use std::path::{Path, PathBuf};

use super::super::TARGETS;

/// With all of a large input this would take minutes: one of more bytes is cut and changed at so many places all over it.
const PLACES: usize = 400;
/// The same where one input takes milliseconds: a file is written, or one text is made of another and read in turn.
const PLACES_OF_SLOW: usize = 60;
const SLOW: [&str; 2] = ["import", "ledger"];

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

fn inputs(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let files = fs::read_dir(folder(target)).unwrap().map(|entry| entry.unwrap().path());
    let mut inputs: Vec<(PathBuf, Vec<u8>)> = files.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    inputs.sort();
    inputs
}

fn places(target: &str, length: usize) -> impl Iterator<Item = usize> + use<> {
    let most = if SLOW.contains(&target) { PLACES_OF_SLOW } else { PLACES };
    // An odd step, so that every byte of a word has its turn.
    (0..length).step_by(length.div_ceil(most) | 1)
}

/// Says on a panic which input it was.
struct Input<'a>(&'a Path, String);

impl Drop for Input<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("this was {}, {}", self.0.display(), self.1);
        }
    }
}

fn upset(target: &str) {
    let (_, read) = *TARGETS.iter().find(|(name, _)| *name == target).unwrap();
    let inputs = inputs(target);
    assert!(!inputs.is_empty(), "{target} has no corpus");
    for (path, input) in inputs {
        let mut which = Input(&path, "as it is".to_owned());
        read(&input);
        for end in places(target, input.len()) {
            which.1 = format!("cut to {end} bytes");
            read(&input[..end]);
        }
        let mut changed = input.clone();
        for place in places(target, input.len()) {
            for change in [0xff, 0x01, 0x80] {
                which.1 = format!("byte {place} changed by {change:#04x}");
                changed[place] ^= change;
                read(&changed);
                changed[place] = input[place];
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
                upset(stringify!($name));
            }
        )*
    };
}

// A test for each, so that they run side by side.
targets! { capture config control files fleet hosts_deny ignore_file import ledger names nft rtnetlink sock_diag spawner }

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
