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
    let reply = api.operator.call(async |mut c| c.halt(request.clone()).await).await.map_err(|s| api.fail(&s))?;
    let left = (reply.all_ended_by_us - jiff::Timestamp::now().as_microsecond()).max(0);
    if format == Format::Json {
        print_json(&json!({"committed": reply.committed, "probersTold": reply.probers_told, "allEndedWithinSeconds": left as f64 / 1e6}));
    } else {
        let committed = if reply.committed { "committed" } else { "NOT committed yet: there is no quorum; it will be when there is one" };
        println!("halt: {committed}; {} probers told", reply.probers_told);
        println!("every lease has ended within {}, even on probers that cannot be reached", seconds(left as f64 / 1e6));
        println!("`probity halt lift` lets faults start again");
    }
    Ok(ExitCode::SUCCESS)
}
