//! `halt`: end every fault now.

use std::process::ExitCode;

use probity_rpc::v1::{HaltRequest, LiftHaltRequest};
use serde_json::json;

use crate::Outcome;
use crate::api::{Api, request_id};
use crate::args::{Format, HaltArgs};
use crate::output::{print_json, seconds};

pub(super) async fn run(api: &mut Api, args: HaltArgs, format: Format) -> Outcome {
    if args.command.is_some() {
        let request = LiftHaltRequest { request_id: request_id() };
        api.operator.call(async |mut c| c.lift_halt(request.clone()).await).await.map_err(|s| api.fail(&s))?;
        println!("halt lifted: faults may start again");
        return Ok(ExitCode::SUCCESS);
    }
    let request = HaltRequest { request_id: request_id(), reason: args.reason };
    let mut reply = api.operator.call(async |mut c| c.halt(request.clone()).await).await.map_err(|s| api.fail(&s))?;
    // Whoever took it may be cut off from those who lead, or have no room on its disk: then another brings it there, or tells its own probers at least.
    for mut other in api.operator.others() {
        if reply.committed {
            break;
        }
        if let Ok(there) = other.call(async |mut c| c.halt(request.clone()).await).await {
            reply.committed = there.committed;
            reply.probers_told += there.probers_told;
            reply.all_ended_by_us = reply.all_ended_by_us.max(there.all_ended_by_us);
        }
    }
    let left = (reply.all_ended_by_us - jiff::Timestamp::now().as_microsecond()).max(0);
    if format == Format::Json {
        print_json(&json!({"committed": reply.committed, "probersTold": reply.probers_told, "allEndedWithinSeconds": left as f64 / 1e6}));
    } else {
        let committed = if reply.committed { "committed" } else { "NOT committed yet: there is no quorum; it will be when there is one" };
        println!("halt: {committed}; {} probers told", reply.probers_told);
        let whom = if reply.committed { "even on probers that cannot be reached" } else { "unless a leader that was not reached renews it" };
        println!("every lease has ended within {}, {whom}", seconds(left as f64 / 1e6));
        println!("`probity halt lift` lets faults start again");
    }
    Ok(ExitCode::SUCCESS)
}
