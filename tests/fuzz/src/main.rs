//! Writes what the entries begin from: `cargo run -p probity-fuzz -- fuzz/corpus`, for cargo-fuzz. With an entry and a file: runs that input.

use std::path::Path;

fn main() -> std::io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.as_slice() {
        [dir] => {
            for entry in probity_fuzz::ENTRIES {
                let dir = Path::new(dir).join(entry.name);
                std::fs::create_dir_all(&dir)?;
                for (i, seed) in (entry.seeds)().iter().enumerate() {
                    std::fs::write(dir.join(format!("seed-{i:02}")), seed)?;
                }
            }
        }
        [name, file] => (probity_fuzz::entry(name).run)(&std::fs::read(file)?),
        _ => {
            for entry in probity_fuzz::ENTRIES {
                println!("{:<18} {}", entry.name, entry.covers);
            }
        }
    }
    Ok(())
}
