//! `targets accept`: a much smaller set of discovered targets is taken, after a person looked at it.

use std::process::ExitCode;

use probity_rpc::v1::AcceptTargetsRequest;

use crate::api::{Api, request_id};
use crate::output::print_lines;
use crate::{Fail, Outcome, exit};

pub(super) async fn accept(api: &mut Api, probe: &str, yes: bool) -> Outcome {
    let value = api.read(&format!("{}?checks=false", super::get::item_path("probes", true, &api.namespace, probe))).await?;
    let discovery = &value["status"]["discovery"];
    let Some(revision) = discovery["held"]["revision"].as_u64() else {
        return Err(Fail::no(format!("no set of targets is held for probe {probe:?} in namespace {:?}", api.namespace)));
    };
    print_lines(&super::describe::discovery(discovery, probe));
    if !yes && !super::gameday::ask("take them?")? {
        println!("nothing was changed");
        return Ok(ExitCode::from(exit::NO));
    }
    let request = AcceptTargetsRequest { request_id: request_id(), namespace: api.namespace.clone(), probe: probe.to_owned(), revision };
    api.operator.call(async |mut c| c.accept_targets(request.clone()).await).await.map_err(|s| api.fail(&s))?;
    println!("accepted: {} targets", discovery["held"]["targets"]);
    Ok(ExitCode::SUCCESS)
}
