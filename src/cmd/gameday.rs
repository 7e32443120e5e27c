//! `gameday`: run a scenario, follow it, and print what was measured.

use std::collections::BTreeMap;
use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;

use probity_rpc::v1::{AbortGameDayRequest, StartGameDayRequest};
use serde_json::Value;

use crate::api::{Api, request_id};
use crate::args::{Format, GameDayRunArgs};
use crate::output::{Table, at, cell, duration, paint, print_json, print_lines, print_yaml, seconds};
use crate::{Fail, Outcome, exit};

fn parameters(args: &GameDayRunArgs) -> Result<BTreeMap<String, String>, Fail> {
    args.parameters
        .iter()
        .map(|text| match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(Fail::misuse(format!("--set {text:?} (want name=value)"))),
        })
        .collect()
}

fn start_request(api: &Api, args: &GameDayRunArgs, dry_run: bool) -> Result<StartGameDayRequest, Fail> {
    Ok(StartGameDayRequest {
        request_id: request_id(),
        namespace: api.namespace.clone(),
        scenario: args.scenario.clone(),
        parameters: parameters(args)?,
        seed: args.seed,
        dry_run,
    })
}

async fn planned(api: &mut Api, args: &GameDayRunArgs) -> Result<Value, Fail> {
    let request = start_request(api, args, true)?;
    let reply = api.operator.call(async |mut c| c.start_game_day(request.clone()).await).await.map_err(|s| api.fail(&s))?;
    serde_json::from_str(&reply.plan_json).map_err(|e| Fail::no(format!("the plan is no JSON: {e}")))
}

pub(super) async fn plan(api: &mut Api, args: GameDayRunArgs, format: Format) -> Outcome {
    let plan = planned(api, &args).await?;
    match format {
        Format::Json => print_json(&plan),
        Format::Yaml => print_yaml(&plan),
        _ => print_lines(&plan_lines(&plan)),
    }
    Ok(ExitCode::SUCCESS)
}

/// "demo: proxy.reset on shop-http, 30 s, 1 host, undo descriptor-lifetime", a line per step.
fn plan_lines(plan: &Value) -> Vec<String> {
    let cluster = cell(plan, "cluster");
    plan["steps"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|step| {
            let hosts = step["hosts"].as_array().map_or(0, Vec::len);
            let names: Vec<&str> = step["hosts"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            format!(
                "{cluster}: {} on {}, {}, {hosts} host{} ({}), undo {}",
                cell(step, "fault"),
                cell(step, "object"),
                duration(step, "holdSeconds"),
                if hosts == 1 { "" } else { "s" },
                names.join(", "),
                cell(step, "undo"),
            )
        })
        .collect()
}

/// Asks a person.
pub(super) fn ask(question: &str) -> Result<bool, Fail> {
    if !std::io::stdin().is_terminal() {
        return Err(Fail::misuse("standard input is no terminal, so nobody can be asked (--yes does it without asking)"));
    }
    print!("{question} [y/N] ");
    let _ = std::io::stdout().flush();
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(|e| Fail::misuse(format!("cannot read the answer: {e}")))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

pub(super) async fn run(api: &mut Api, args: GameDayRunArgs, format: Format) -> Outcome {
    let quiet = format == Format::Json;
    let plan = planned(api, &args).await?;
    if !quiet {
        print_lines(&plan_lines(&plan));
    }
    if !args.yes && !ask("run it?")? {
        return Err(Fail::no("not run"));
    }
    let request = start_request(api, &args, false)?;
    let reply = api.operator.call(async |mut c| c.start_game_day(request.clone()).await).await.map_err(|s| api.fail(&s))?;
    if args.detach {
        println!("{} started; `probity gameday report {}` tells how it goes", reply.name, reply.name);
        return Ok(ExitCode::SUCCESS);
    }
    let day = follow(api, &reply.name, quiet).await?;
    if quiet {
        print_json(&day);
    } else {
        print_lines(&verdict_lines(api, &day).await);
    }
    Ok(exit_code(&day))
}

/// Prints the timeline as it grows, until the game day has ended. Ctrl-C aborts it and waits on.
async fn follow(api: &mut Api, name: &str, quiet: bool) -> Result<Value, Fail> {
    let path = super::get::item_path("gamedays", true, &api.namespace, name);
    let mut printed = 0;
    let mut aborted = false;
    let mut stream = api.watch(&path).await?;
    loop {
        let reading = tokio::select! {
            reading = stream.next() => reading,
            _ = tokio::signal::ctrl_c() => {
                if aborted {
                    return Err(Fail::new(exit::ABORTED, format!("{name} is being aborted by the cluster; its faults end by their leases")));
                }
                aborted = true;
                eprintln!("aborting {name}: waiting for the verified undo");
                send_abort(api, name, "interrupted by the operator".to_owned()).await?;
                continue;
            }
        };
        let Some(day) = reading else {
            // A failover: the game day goes on, and so do we.
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            stream = api.watch(&path).await?;
            continue;
        };
        let timeline = at(&day, "status.timeline").as_array().cloned().unwrap_or_default();
        if !quiet {
            let lines: Vec<String> = timeline.iter().skip(printed).map(timeline_line).collect();
            print_lines(&lines);
        }
        printed = timeline.len().max(printed);
        if day["status"]["phase"] == "ended" {
            return Ok(day);
        }
    }
}

fn timeline_line(entry: &Value) -> String {
    let offset = entry["offsetSeconds"].as_f64().unwrap_or(0.0);
    let what = cell(entry, "what");
    let word = match what.as_str() {
        "steady" => return format!("{:>8}  {}", format!("+{offset:.1} s"), cell(entry, "detail")),
        "injected" | "down" | "firing" | "undone" | "recovered" | "resolved" | "aborted" => what.to_uppercase(),
        other => other.replace('_', " "),
    };
    let pad = " ".repeat(10usize.saturating_sub(word.len()));
    format!("{:>8}  {}{pad} {}", format!("+{offset:.1} s"), paint(&word), cell(entry, "detail"))
}

/// The whole report of one game day.
pub(super) fn report_lines(day: &Value) -> Vec<String> {
    let mut lines = vec![format!("{} of scenario {}", cell(day, "metadata.name"), cell(day, "status.scenario"))];
    lines.extend(at(day, "status.timeline").as_array().into_iter().flatten().map(timeline_line));
    lines.extend(measured_lines(day));
    lines
}

fn measured_lines(day: &Value) -> Vec<String> {
    let status = &day["status"];
    let mut lines = vec![String::new()];
    // What was cut short is not judged.
    let judged = matches!(status["result"].as_str(), Some("passed" | "failed"));
    let mut table = Table::new(&["EXPECTED", "WITHIN", "MEASURED", "", ""]);
    for m in status["measured"].as_array().into_iter().flatten() {
        let within = match m["withinSeconds"].as_f64() {
            Some(s) => seconds(s),
            None => cell(m, "limit"),
        };
        let measured = match m["measuredSeconds"].as_f64() {
            Some(s) => match m["errorSeconds"].as_f64().filter(|e| *e >= 0.05) {
                Some(error) => format!("{} \u{b1}{error:.1}", seconds(s)),
                None => seconds(s),
            },
            None => cell(m, "text"),
        };
        let ok = match m["ok"].as_bool() {
            Some(true) => "ok",
            _ if judged => "FAILED",
            _ => "-",
        };
        let note = m["note"].as_str().unwrap_or("").to_owned();
        table.row([cell(m, "what"), within, measured, ok.to_owned(), note]);
    }
    if status["measured"].as_array().is_some_and(|m| !m.is_empty()) {
        lines.extend(table.lines().into_iter().map(|line| line.trim_end().to_owned()));
    }
    let accounts: Vec<String> = status["accounts"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|a| {
            let pending = a["pending"].as_u64().filter(|p| *p > 0).map(|p| format!(" + {p} pending")).unwrap_or_default();
            let n = |key: &str| cell(a, key);
            format!("{}: {} planned = {} good + {} bad + {} missed{pending}", n("probe"), n("planned"), n("good"), n("bad"), n("missed"))
        })
        .collect();
    let result = cell(status, "result").to_uppercase();
    let reason = status["reason"].as_str().filter(|r| !r.is_empty()).map(|r| format!("  {r}")).unwrap_or_default();
    if status["phase"] == "ended" {
        lines.push(format!("{}{reason}", paint(&result)));
    } else {
        lines.push(format!("{}: still running", cell(status, "phase")));
    }
    lines.extend(accounts.into_iter().map(|a| format!("  {a}")));
    lines
}

async fn verdict_lines(api: &mut Api, day: &Value) -> Vec<String> {
    let mut lines = measured_lines(day);
    let namespace = if api.namespace == "default" { String::new() } else { format!("{}/", api.namespace) };
    if let Ok(status) = api.read("/api/v1/status").await {
        let leader = cell(&status, "leader.id");
        let http = status["members"].as_array().into_iter().flatten().find(|m| cell(m, "id") == leader).map(|m| cell(m, "httpAddress"));
        if let Some(address) = http.filter(|a| a != "-") {
            lines.push(format!("report  http://{address}/gamedays/{namespace}{}", cell(day, "metadata.name")));
        }
    }
    lines
}

fn exit_code(day: &Value) -> ExitCode {
    match day["status"]["result"].as_str() {
        Some("passed") => ExitCode::SUCCESS,
        Some("aborted") => ExitCode::from(exit::ABORTED),
        Some("inconclusive") => ExitCode::from(exit::INCONCLUSIVE),
        _ => ExitCode::from(exit::NO),
    }
}

pub(super) async fn report(api: &mut Api, name: &str, format: Format) -> Outcome {
    let day = api.read(&super::get::item_path("gamedays", true, &api.namespace, name)).await?;
    match format {
        Format::Json => print_json(&day),
        Format::Yaml => print_yaml(&day),
        _ => print_lines(&report_lines(&day)),
    }
    Ok(if day["status"]["phase"] == "ended" { exit_code(&day) } else { ExitCode::SUCCESS })
}

async fn send_abort(api: &mut Api, name: &str, reason: String) -> Result<(), Fail> {
    let request = AbortGameDayRequest { request_id: request_id(), namespace: api.namespace.clone(), name: name.to_owned(), reason };
    api.operator.call(async |mut c| c.abort_game_day(request.clone()).await).await.map(|_| ()).map_err(|s| api.fail(&s))
}

pub(super) async fn abort(api: &mut Api, name: &str, reason: String) -> Outcome {
    send_abort(api, name, reason).await?;
    let day = follow(api, name, false).await?;
    print_lines(&[format!("{name}: {}", cell(&day, "status.result"))]);
    Ok(ExitCode::SUCCESS)
}
