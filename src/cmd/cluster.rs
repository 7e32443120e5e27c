//! `cluster init`.

use std::process::ExitCode;

use probity_rpc::v1::InitClusterRequest;
use serde_json::json;

use crate::Outcome;
use crate::api::{Api, request_id};
use crate::args::Format;
use crate::output::print_json;

pub(super) async fn init(api: &mut Api, format: Format) -> Outcome {
    let request = InitClusterRequest { request_id: request_id() };
    let reply = api.operator.call(async |mut c| c.init_cluster(request.clone()).await).await.map_err(|s| api.fail(&s))?;
    if format == Format::Json {
        let members: Vec<_> = reply.members.iter().map(|m| json!({"id": format!("{:x}", m.id), "name": m.name, "address": m.address})).collect();
        print_json(&json!({"clusterId": reply.cluster_id, "members": members}));
    } else {
        let names: Vec<&str> = reply.members.iter().map(|m| m.name.as_str()).collect();
        println!("cluster {} formed of {}", reply.cluster_id, names.join(", "));
    }
    Ok(ExitCode::SUCCESS)
}
