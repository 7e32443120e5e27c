//! Watches at a real coordinator: nobody has more than a share of them, by however many connections, and who watches lets go of its share.

mod common;

use common::group::Group;
use common::wait_for;
use probity_rpc::client::channel;
use probity_rpc::tls::TlsFiles;
use probity_rpc::v1::operator_client::OperatorClient;
use probity_rpc::v1::{ReadReply, ReadRequest};
use tonic::{Code, Status, Streaming};

/// What one identity may have (coordinator/src/watches.rs).
const SHARE: usize = 32;

struct Console {
    runtime: tokio::runtime::Runtime,
    address: String,
    tls: TlsFiles,
}

impl Console {
    fn new(group: &Group, who: &str) -> Console {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        Console { runtime, address: group.address(0), tls: TlsFiles::new(group.tls.as_ref().expect("TLS").join(who)) }
    }

    /// On a connection of its own.
    fn watch(&self) -> Result<Streaming<ReadReply>, Status> {
        self.runtime.block_on(async {
            let mut client = OperatorClient::new(channel(&self.address, Some(&self.tls)).expect("an address"));
            let request = ReadRequest { path: "/api/v1/status".to_owned(), stale: true };
            Ok(client.watch(request).await?.into_inner())
        })
    }
}

#[test]
fn nobody_takes_all_the_watches() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut group = Group::start_secure(dir.path(), 1, 1, &["--client", "anna=operator", "--client", "otto=viewer"]);
    group.leader();
    let (anna, otto) = (Console::new(&group, "anna"), Console::new(&group, "otto"));
    let mut open: Vec<_> = (0..SHARE).map(|n| anna.watch().unwrap_or_else(|e| panic!("watch {n}: {e}"))).collect();
    let refused = anna.watch().expect_err("more than her share");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(refused.message().contains("anna has 32 watches open at this coordinator"), "{refused:?}");
    // Others watch all the same, and so it is for what a game day shows.
    let mut others = otto.watch().expect("his own share");
    let first = otto.runtime.block_on(others.message()).expect("no error").expect("a reading");
    assert!(first.json.contains("\"leader\""), "{}", first.json);
    // A change is seen by all that are open.
    group.write("seen");
    for stream in &mut open {
        let seen = anna.runtime.block_on(async {
            while let Some(reading) = stream.message().await? {
                if reading.json.contains("\"seen\"") {
                    return Ok(true);
                }
            }
            Ok::<_, Status>(false)
        });
        assert!(seen.expect("no error"));
    }
    // One that goes makes room.
    open.truncate(SHARE - 1);
    let _again = wait_for("room", || anna.watch().ok());
    assert!(!group.server(0).log().contains("panicked"), "{}", group.server(0).log());
}
