//! What was written once is read for ever: committed bytes of every record and command, and every field number.
//!
//! Both files only grow. After a change of the schema, `PROBITY_BLESS=1 cargo test -p probity-core --test encoding` appends what is
//! new; a line that no longer holds means that stored data would be read wrongly, and the schema must be mended instead.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use probity_proto::v1::*;
use prost::Message;
use protox::prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};

type Reencode = fn(&[u8]) -> Result<Vec<u8>, prost::DecodeError>;

fn reencode<M: Message + Default>(bytes: &[u8]) -> Result<Vec<u8>, prost::DecodeError> {
    M::decode(bytes).map(|m| m.encode_to_vec())
}

/// Everything that stands in the store, the log or a prober's spool.
fn stored() -> BTreeMap<&'static str, Reencode> {
    macro_rules! types { ($($name:ident)*) => { BTreeMap::from([$((stringify!($name), reencode::<$name> as Reencode)),*]) } }
    types! {
        MetaRecord MemberRecord Resource ProberRecord CheckRecord VoterRecord AssignmentRecord LedgerRecord AlertRecord EpisodeRecord
        OutboxRecord GameDayRecord FaultRecord EventRecord AuditRecord RequestRecord TokenRecord RevocationRecord DiscoveryRecord RetiredCheckRecord Command CommandResult ReportRow AssignmentSpec
        HardStateRecord ConfStateRecord ConfChangeRecord RaftEntry RaftEntries StateRows SnapshotManifest BackupPart
    }
}

fn schema() -> DescriptorPool {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto/schema");
    let files: Vec<PathBuf> = std::fs::read_dir(&dir).expect("the schema").map(|e| e.expect("an entry").path()).collect();
    let set = protox::compile(files, [dir]).expect("the schema compiles");
    DescriptorPool::from_file_descriptor_set(set).expect("the schema is whole")
}

fn message(pool: &DescriptorPool, name: &str) -> MessageDescriptor {
    pool.get_message_by_name(&format!("probity.v1.{name}")).unwrap_or_else(|| panic!("no message {name}"))
}

/// An instance with every field set; of each oneof the alternative number `variant`.
fn filled(descriptor: &MessageDescriptor, variant: usize, seed: &mut u64) -> DynamicMessage {
    let mut out = DynamicMessage::new(descriptor.clone());
    for field in descriptor.fields() {
        if let Some(oneof) = field.containing_oneof() {
            let alternatives: Vec<FieldDescriptor> = oneof.fields().collect();
            if alternatives[variant % alternatives.len()] != field {
                continue;
            }
        }
        let value = if field.is_map() {
            let Kind::Message(entry) = field.kind() else { unreachable!("a map's entries are messages") };
            let key = match single(&entry.map_entry_key_field(), variant, seed) {
                Value::String(s) => MapKey::String(s),
                Value::U32(n) => MapKey::U32(n),
                other => panic!("no map with keys like {other:?} is expected"),
            };
            Value::Map([(key, single(&entry.map_entry_value_field(), variant, seed))].into())
        } else if field.is_list() {
            Value::List(vec![single(&field, variant, seed), single(&field, variant + 1, seed)])
        } else {
            single(&field, variant, seed)
        };
        out.set_field(&field, value);
    }
    out
}

fn single(field: &FieldDescriptor, variant: usize, seed: &mut u64) -> Value {
    *seed += 1;
    let n = *seed;
    match field.kind() {
        Kind::Message(message) => Value::Message(filled(&message, variant, seed)),
        Kind::Enum(kind) => Value::EnumNumber(kind.values().last().expect("an enum has values").number()),
        Kind::String => Value::String(format!("{}-{n}", field.name())),
        Kind::Bytes => Value::Bytes(vec![n as u8, 0, 255].into()),
        Kind::Bool => Value::Bool(true),
        Kind::Uint32 => Value::U32(n as u32 + 1_000),
        Kind::Uint64 => Value::U64(n << 40),
        // Negative ones are longest.
        Kind::Int64 => Value::I64(-(n as i64)),
        Kind::Int32 => Value::I32(-(n as i32)),
        other => panic!("{}: no field of kind {other:?} is expected: floats have no place here", field.full_name()),
    }
}

/// The messages that a message is made of, itself included.
fn reachable(descriptor: &MessageDescriptor, found: &mut BTreeMap<String, MessageDescriptor>) {
    if found.insert(descriptor.full_name().to_owned(), descriptor.clone()).is_some() {
        return;
    }
    for field in descriptor.fields() {
        if let Kind::Message(inner) = field.kind() {
            reachable(&inner, found);
        }
    }
}

/// As many variants as the largest oneof inside has alternatives.
fn variants(descriptor: &MessageDescriptor) -> usize {
    let mut inside = BTreeMap::new();
    reachable(descriptor, &mut inside);
    inside.values().flat_map(|m| m.oneofs()).map(|o| o.fields().len()).max().unwrap_or(1)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).expect("hexadecimal")).collect()
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The committed lines; what the schema has beyond them is appended when asked for, and an error else.
fn committed(name: &str, now: &[String]) -> Vec<String> {
    let text = std::fs::read_to_string(fixture(name)).unwrap_or_default();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let known: BTreeSet<&String> = lines.iter().collect();
    let new: Vec<String> = now.iter().filter(|l| !known.contains(l)).cloned().collect();
    if std::env::var_os("PROBITY_BLESS").is_some() {
        lines.extend(new);
        std::fs::write(fixture(name), lines.join("\n") + "\n").expect("the fixture is written");
    } else {
        assert!(new.is_empty(), "{name} lacks {} lines, such as {:.200}: see the head of this test", new.len(), new[0]);
    }
    lines
}

#[test]
fn what_was_written_is_read() {
    let pool = schema();
    let types = stored();
    let mut now = Vec::new();
    for name in types.keys() {
        let descriptor = message(&pool, name);
        for variant in 0..variants(&descriptor) {
            now.push(format!("{name}#{variant} {}", hex(&filled(&descriptor, variant, &mut 0).encode_to_vec())));
        }
    }
    for line in committed("encoding.txt", &now) {
        let (what, bytes) = line.split_once(' ').expect("a name and bytes");
        let (name, _) = what.split_once('#').expect("a name and a variant");
        let bytes = unhex(bytes);
        let again = types[name](&bytes).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(hex(&again), hex(&bytes), "{what} is not written as it was read");
    }
}

#[test]
fn field_numbers_are_for_ever() {
    let pool = schema();
    let mut messages = BTreeMap::new();
    stored().keys().for_each(|name| reachable(&message(&pool, name), &mut messages));
    let mut now = BTreeSet::new();
    for message in messages.values() {
        for field in message.fields() {
            let many = if field.is_list() { "repeated " } else { "" };
            now.insert(format!("{}.{} = {many}{:?} {}", message.full_name(), field.number(), field.kind(), field.name()));
            if let Kind::Enum(kind) = field.kind() {
                now.extend(kind.values().map(|v| format!("{}.{} = {}", kind.full_name(), v.number(), v.name())));
            }
        }
    }
    let now: Vec<String> = now.into_iter().collect();
    for line in committed("fields.txt", &now) {
        assert!(now.contains(&line), "the schema no longer has {line:?}: stored data would be read wrongly");
    }
}
