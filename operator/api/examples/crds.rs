//! Writes the CustomResourceDefinitions into `crds/` at the repository's root.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crds");
    std::fs::create_dir_all(&dir)?;
    for (name, content) in mqtt_operator_api::crds::files()? {
        std::fs::write(dir.join(&name), content)?;
    }
    Ok(())
}
