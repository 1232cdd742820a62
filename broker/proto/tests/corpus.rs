//! The inputs kept for the fuzz targets, each once more, on the stable toolchain.

#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::{fs, path::Path};

#[test]
fn every_kept_input_of_the_fuzz_targets_passes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, target) in [
        ("codec", targets::codec as fn(&[u8])),
        ("session", targets::session),
        ("trie", targets::trie),
        ("acl", targets::acl),
        ("records", targets::records),
    ] {
        let inputs: Vec<_> = fs::read_dir(folder.join(name)).expect("a folder of inputs").collect();
        assert!(inputs.len() > 10, "only {} inputs for {name}", inputs.len());
        for input in inputs {
            let path = input.expect("an entry").path();
            // Shown when it fails.
            println!("{}", path.display());
            target(&fs::read(&path).expect("an input"));
        }
    }
}
