//! Writes the CustomResourceDefinitions, and what else is made of the resource types, into the repository.

use std::{fs, path::Path};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for folder in mqtt_operator_api::crds::FOLDERS {
        fs::create_dir_all(root.join(folder))?;
    }
    for (path, content) in mqtt_operator_api::crds::files()? {
        fs::write(root.join(path), content)?;
    }
    Ok(())
}
