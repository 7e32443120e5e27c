//! Generates the prost messages from `schema/`, without protoc.
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = Path::new("schema");
    let mut files: Vec<_> = std::fs::read_dir(dir)?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    files.sort();
    println!("cargo:rerun-if-changed=schema");
    let descriptors = protox::compile(&files, [dir])?;
    prost_build::Config::new()
        // Sorted maps: one encoding per value, on every replica.
        .btree_map(["."])
        // Entries are held, sent and written by several at once: they share their bytes.
        .bytes([".probity.v1.RaftEntry", ".probity.v1.AssignmentRecord", ".probity.v1.VoterRecord"])
        // Rare, and as large as all the rest of an answer.
        .boxed(".probity.v1.Applied.token")
        .compile_fds(descriptors)?;
    Ok(())
}
