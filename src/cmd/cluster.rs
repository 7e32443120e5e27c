//! `cluster`: forming it, and its members.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use probity_coordinator::CoordinatorConfig;
use probity_coordinator::backup::{self, Writer};
use probity_rpc::v1::{BackupRequest, InitClusterRequest, JoinMemberRequest, MembershipReply, RemoveMemberRequest, TransferLeaderRequest};
use serde_json::{Value, json};

use crate::api::{Api, request_id};
use crate::args::{ClusterCommand, Format, ServerArgs};
use crate::output::{Table, cell, print_json, print_lines, print_yaml};
use crate::{Fail, Outcome, exit};

/// How long a new member may take to catch up before the command says that it is still on its way.
const CATCH_UP: Duration = Duration::from_secs(300);
/// A member that lacks more entries than this lags.
const LAG_ENTRIES: u64 = 1_000;

pub(super) async fn run(api: &mut Api, command: ClusterCommand, format: Format) -> Outcome {
    match command {
        ClusterCommand::Init => init(api, format).await,
        ClusterCommand::Join { address, no_wait } => add(api, address, String::new(), no_wait, format).await,
        ClusterCommand::Replace { member, address, no_wait } => add(api, address, member, no_wait, format).await,
        ClusterCommand::Remove { member } => remove(api, member, format).await,
        ClusterCommand::Transfer { member } => transfer(api, member.unwrap_or_default(), format).await,
        ClusterCommand::Backup { file } => backup(api, &file, format).await,
        ClusterCommand::Restore { file, server } => restore(&file, &server, format),
        ClusterCommand::Status => status(api, format).await,
    }
}

async fn init(api: &mut Api, format: Format) -> Outcome {
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

/// What became of a change of members, for people or programs.
fn print_change(done: &str, reply: &MembershipReply, format: Format) {
    let member = reply.member.clone().unwrap_or_default();
    if format == Format::Json {
        let id = format!("{:x}", member.id);
        print_json(&json!({"member": {"id": id, "name": member.name, "address": member.address}, "done": done, "voters": reply.voters, "notes": reply.notes}));
        return;
    }
    println!("{} {done}; {} voters", member.name, reply.voters);
    reply.notes.iter().for_each(|note| println!("note: {note}"));
}

async fn add(api: &mut Api, address: String, replaces: String, no_wait: bool, format: Format) -> Outcome {
    let request = JoinMemberRequest { request_id: request_id(), address, replaces };
    let reply = api.operator.call(async |mut c| c.join_member(request.clone()).await).await.map_err(|s| api.fail(&s))?;
    let member = reply.member.clone().unwrap_or_default();
    if no_wait {
        print_change("is a learner, and votes when it has caught up", &reply, format);
        return Ok(ExitCode::SUCCESS);
    }
    if format != Format::Json {
        println!("{} is a learner; it votes when it has caught up", member.name);
    }
    let deadline = Instant::now() + CATCH_UP;
    let mut last_lag = None;
    while Instant::now() < deadline {
        // An election in between is no reason to give up.
        let members = api.read("/api/v1/members").await.unwrap_or_default();
        let id = format!("{:x}", member.id);
        let settled = items(&members).all(|m| m["status"]["leaving"] != true);
        let found = items(&members).find(|m| m["status"]["id"] == id.as_str());
        if settled && found.is_some_and(|m| m["status"]["votes"] == true) {
            // The leader knows it. When it is asked again it answers when a quorum does: an election must not need who was replaced.
            let again = JoinMemberRequest { request_id: request_id(), address: request.address.clone(), replaces: String::new() };
            api.operator.call(async |mut c| c.join_member(again.clone()).await).await.map_err(|s| api.fail(&s))?;
            print_change("votes", &reply, format);
            return Ok(ExitCode::SUCCESS);
        }
        // Before its first snapshot it has confirmed nothing.
        let lag = found.filter(|m| m["status"]["matchIndex"].as_u64() > Some(0)).and_then(|m| m["status"]["lagEntries"].as_u64());
        if let Some(lag) = lag.filter(|l| Some(*l) != last_lag && format != Format::Json) {
            println!("  lacks {lag} log entries");
            last_lag = Some(lag);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    Err(Fail::new(exit::NO, format!("{} has not caught up within {} s; it goes on by itself (`probity cluster status`)", member.name, CATCH_UP.as_secs())))
}

async fn remove(api: &mut Api, member: String, format: Format) -> Outcome {
    let request = RemoveMemberRequest { request_id: request_id(), member };
    let reply = api.operator.call(async |mut c| c.remove_member(request.clone()).await).await.map_err(|s| api.fail(&s))?;
    print_change("is removed: it ends by itself, and its data directory is of no more use", &reply, format);
    Ok(ExitCode::SUCCESS)
}

async fn transfer(api: &mut Api, member: String, format: Format) -> Outcome {
    let request = TransferLeaderRequest { member };
    let reply = api.operator.call(async |mut c| c.transfer_leader(request.clone()).await).await.map_err(|s| api.fail(&s))?;
    if format == Format::Json {
        print_json(&json!({"leader": reply.leader}));
    } else {
        println!("{} leads", reply.leader);
    }
    Ok(ExitCode::SUCCESS)
}

async fn backup(api: &mut Api, path: &Path, format: Format) -> Outcome {
    let mut writer = Writer::create(path).map_err(|e| Fail::of(exit::NO, &e))?;
    let request = BackupRequest { stale: api.stale() };
    let mut stream = api.operator.look(async |mut c| c.backup(request).await).await.map_err(|s| api.fail(&s))?;
    while let Some(part) = stream.message().await.map_err(|s| api.fail(&s))? {
        writer.part(part).map_err(|e| Fail::of(exit::NO, &e))?;
    }
    let (header, rows, bytes) = writer.finish().map_err(|e| Fail::of(exit::NO, &e))?;
    let hash = format!("{:016x}", header.state_hash);
    if format == Format::Json {
        print_json(&json!({"file": path, "clusterId": header.cluster_id, "index": header.index, "stateHash": hash, "rows": rows, "bytes": bytes}));
    } else {
        println!("{}: cluster {} at index {}, {rows} rows, {bytes} bytes, state hash {hash}, checked", path.display(), header.cluster_id, header.index);
    }
    Ok(ExitCode::SUCCESS)
}

fn restore(path: &Path, server: &ServerArgs, format: Format) -> Outcome {
    let config = CoordinatorConfig::load(&server.config, server.insecure).map_err(Fail::misuse)?;
    if server.check {
        let checked = backup::read(path).map_err(|e| Fail::of(exit::NO, &e))?;
        let (header, rows) = checked.whole().map_err(|e| Fail::of(exit::NO, &e))?;
        println!("{}: cluster {} at index {}, {rows} rows: whole", path.display(), header.cluster_id, header.index);
        return Ok(ExitCode::SUCCESS);
    }
    let restored = backup::restore(path, &config).map_err(|e| Fail::of(exit::NO, &e))?;
    let (old, index) = (restored.header.cluster_id, restored.header.index);
    if format == Format::Json {
        print_json(&json!({"clusterId": restored.cluster_id, "restoredFrom": {"clusterId": old, "index": index}, "dataDir": config.data_dir}));
        return Ok(ExitCode::SUCCESS);
    }
    println!("cluster {} made of cluster {old} at index {index}, in {}", restored.cluster_id, config.data_dir.display());
    println!("  probity coordinator --config {}", server.config.display());
    println!("  probity cluster join ADDRESS      for each further member, with an empty data directory");
    println!("  probity halt lift                 it begins halted: no fault starts before");
    Ok(ExitCode::SUCCESS)
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

async fn status(api: &mut Api, format: Format) -> Outcome {
    let members = api.read("/api/v1/members").await?;
    match format {
        Format::Json => print_json(&members),
        Format::Yaml => print_yaml(&members),
        _ => print_lines(&lines(&members)),
    }
    let well = |m: &Value| m["status"]["reachable"] == true && m["status"]["lagEntries"].as_u64() < Some(LAG_ENTRIES) && m["status"]["role"] != "unknown";
    Ok(if items(&members).all(well) { ExitCode::SUCCESS } else { ExitCode::from(exit::NO) })
}

fn lines(members: &Value) -> Vec<String> {
    let mut table = Table::new(&["MEMBER", "ID", "ADDRESS", "ROLE", "LAG", "ANSWERS", "VERSION", "NOTE"]);
    for member in items(members) {
        let s = &member["status"];
        let note = match (s["condition"].as_str(), s["leaving"] == true, s["replaces"].as_str(), s["cannotIssue"].as_str()) {
            (Some(condition), ..) => condition.to_owned(),
            (_, true, ..) => "leaves".to_owned(),
            (.., Some(id), _) => format!("will replace {id}"),
            (.., Some(why)) => why.to_owned(),
            _ => String::new(),
        };
        // Only the leader knows (`--stale` asks any member).
        let answers = s["reachable"].as_bool().map_or("-", |yes| if yes { "yes" } else { "no" }).to_owned();
        let [id, address, role, version] = ["id", "address", "role", "version"].map(|path| cell(s, path));
        let lag = lag(s);
        table.row([cell(member, "metadata.name"), id, address, role, lag, answers, version, note]);
    }
    table.lines()
}

/// What a member lacks, where the leader knows: of whom it never heard, it does not.
pub(super) fn lag(member: &Value) -> String {
    match member["matchIndex"].as_u64() {
        Some(0) => "-".to_owned(),
        _ => cell(member, "lagEntries"),
    }
}
