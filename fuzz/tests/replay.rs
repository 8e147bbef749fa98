//! Runs every target on its committed corpus, and on simple variations of it, on any toolchain.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use kohakuriver_tunnel_fuzz::TARGETS;

fn here(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    entries
        .map(|entry| {
            let path = entry.unwrap().path();
            path.file_stem().unwrap().to_str().unwrap().to_owned()
        })
        .collect()
}

#[test]
fn every_target_has_a_binary_and_a_corpus() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(&here("fuzz_targets")), targets);
    assert_eq!(names(&here("corpus")), targets);
}

#[test]
fn corpus_breaks_no_law() {
    for (name, body) in TARGETS {
        let folder = here("corpus").join(name);
        let mut inputs = 0;
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let input = fs::read(&path).unwrap();
            // Printed only if the body panics.
            println!("{}", path.display());
            body(&input);
            inputs += 1;
        }
        assert!(inputs >= 10, "{name}: a corpus of {inputs}");
    }
}

#[test]
fn bent_corpus_breaks_no_law() {
    for (name, body) in TARGETS {
        for entry in fs::read_dir(here("corpus").join(name)).unwrap() {
            let input = fs::read(entry.unwrap().path()).unwrap();
            for end in 0..input.len().min(64) {
                body(&input[..end]);
            }
            for at in 0..input.len().min(64) {
                for change in [0x01, 0x80, 0xff] {
                    let mut bent = input.clone();
                    bent[at] ^= change;
                    body(&bent);
                }
            }
        }
    }
}
