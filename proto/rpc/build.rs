//! Generates the tonic services from `schema/api.proto`, without protoc.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=schema");
    println!("cargo:rerun-if-changed=../schema");
    let descriptors = protox::compile(["schema/api.proto"], ["schema", "../schema"])?;
    let api = descriptors.file.iter().find(|file| file.name() == "api.proto").expect("api.proto was just compiled");
    let own: std::collections::BTreeSet<_> = api.message_type.iter().map(|m| m.name().to_owned()).collect();
    let mut build = tonic_prost_build::configure().btree_map(".");
    // Every message that is not declared here is probity-proto's.
    for file in &descriptors.file {
        let messages = file.message_type.iter().map(|m| m.name());
        let enums = file.enum_type.iter().map(|e| e.name());
        for name in messages.chain(enums) {
            if !own.contains(name) {
                let path = format!(".probity.v1.{name}");
                build = build.extern_path(&path, format!("::probity_proto::v1::{name}"));
            }
        }
    }
    build.compile_fds(descriptors)?;
    Ok(())
}
