//! Changing what the cluster watches: `apply`, `diff`, `validate`, `delete`; and `explain`, which tells what may be written.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use probity_proto::resources;
use probity_proto::v1::ResourceKey;
use probity_rpc::v1::{ApplyReply, ApplyRequest, DeleteRequest, RemoveProberRequest, SourceFile};
use serde_json::json;

use crate::api::{Api, request_id};
use crate::args::{ApplyArgs, DeleteArgs, ExplainArgs, FilesArgs, Format};
use crate::output::{paint, print_json, print_lines};
use crate::{Fail, Outcome, exit};

/// The largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Reads files, the YAML and JSON files of directories, and standard input.
pub(super) fn read_files(paths: &[PathBuf]) -> Result<Vec<SourceFile>, Fail> {
    let mut files = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            let mut text = String::new();
            std::io::stdin().take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(|e| Fail::misuse(format!("cannot read standard input: {e}")))?;
            files.push(SourceFile { name: "<stdin>".to_owned(), text });
        } else if path.is_dir() {
            let mut found = Vec::new();
            collect(path, &mut found)?;
            found.sort();
            if found.is_empty() {
                return Err(Fail::misuse(format!("{} has no *.yaml, *.yml or *.json file", path.display())));
            }
            for file in found {
                files.push(read_file(&file)?);
            }
        } else {
            files.push(read_file(path)?);
        }
    }
    Ok(files)
}

fn collect(dir: &Path, found: &mut Vec<PathBuf>) -> Result<(), Fail> {
    let unreadable = |e: std::io::Error| Fail::misuse(format!("cannot read {}: {e}", dir.display()));
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.is_dir() {
            collect(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json") {
            found.push(path);
        }
    }
    Ok(())
}

fn read_file(path: &Path) -> Result<SourceFile, Fail> {
    let unreadable = |e: std::io::Error| Fail::misuse(format!("cannot read {}: {e}", path.display()));
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    if size > FILE_BYTES_MAX {
        return Err(Fail::misuse(format!("{} has {size} bytes; at most {FILE_BYTES_MAX} are read", path.display())));
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    Ok(SourceFile { name: path.display().to_string(), text })
}

/// `key=value,key2=value2`
pub(super) fn selector(text: &str) -> Result<BTreeMap<String, String>, Fail> {
    text.split(',')
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(Fail::misuse(format!("{pair:?} is no label (want key=value)"))),
        })
        .collect()
}

pub(super) async fn apply(api: &mut Api, args: ApplyArgs, format: Format) -> Outcome {
    let request = ApplyRequest {
        request_id: request_id(),
        files: read_files(&args.files.file)?,
        default_namespace: api.namespace.clone(),
        dry_run: args.dry_run,
        prune: args.prune,
        prune_selector: args.selector.as_deref().map(selector).transpose()?.unwrap_or_default(),
        diff: false,
    };
    let reply = send(api, &request).await?;
    report(&reply, format, args.dry_run)
}

pub(super) async fn send(api: &mut Api, request: &ApplyRequest) -> Result<ApplyReply, Fail> {
    api.operator.call(async |mut c| c.apply(request.clone()).await).await.map_err(|s| api.fail(&s))
}

pub(super) async fn diff(api: &mut Api, args: FilesArgs, format: Format) -> Outcome {
    let request = ApplyRequest {
        request_id: request_id(),
        files: read_files(&args.file)?,
        default_namespace: api.namespace.clone(),
        dry_run: true,
        diff: true,
        ..ApplyRequest::default()
    };
    let reply = send(api, &request).await?;
    if !reply.problems.is_empty() || format == Format::Json {
        return report(&reply, format, true);
    }
    let differs: Vec<_> = reply.changes.iter().filter(|c| c.action != "unchanged").collect();
    for change in &differs {
        print_lines(&[change.diff.trim_end().to_owned()]);
    }
    Ok(if differs.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(exit::NO) })
}

/// What can be known of files without a cluster: an error after every problem was printed.
pub(super) fn check_shape(files: &[SourceFile]) -> Result<(), Fail> {
    let problems = shape_problems(files, "default").1;
    for problem in &problems {
        eprintln!("{problem}");
    }
    match problems.len() {
        0 => Ok(()),
        n => Err(Fail::no(format!("{n} problem{}", if n == 1 { "" } else { "s" }))),
    }
}

/// How many resources there are, and what is wrong with each by itself.
fn shape_problems(files: &[SourceFile], namespace: &str) -> (usize, Vec<resources::Problem>) {
    let files: Vec<resources::SourceFile> = files.iter().map(|f| resources::SourceFile { name: f.name.clone(), text: f.text.clone() }).collect();
    let parsed = resources::parse(&files, namespace);
    let mut problems = parsed.problems;
    for resource in &parsed.resources {
        if let Some(probity_proto::v1::resource::Spec::Scenario(spec)) = &resource.resource.spec {
            problems.extend(probity_scenario::validate(spec).into_iter().map(|p| resource.problem(&p.path, p.message, p.hint)));
        }
    }
    (parsed.resources.len(), problems)
}

/// An error after every problem was printed, when there is one.
pub(super) fn accepted(reply: &ApplyReply) -> Result<(), Fail> {
    if reply.problems.is_empty() {
        return Ok(());
    }
    for p in &reply.problems {
        let hint = if p.hint.is_empty() { String::new() } else { format!(" ({})", p.hint) };
        eprintln!("{}:{}:{}: {}: {}{hint}", p.file, p.line, p.column, p.path, p.message);
    }
    let n = reply.problems.len();
    Err(Fail::no(format!("{n} problem{}; nothing was changed", if n == 1 { "" } else { "s" })))
}

/// Prints what an apply did, or every problem.
fn report(reply: &ApplyReply, format: Format, dry_run: bool) -> Outcome {
    let refused = !reply.problems.is_empty();
    if format == Format::Json {
        let items: Vec<_> = reply
            .changes
            .iter()
            .map(|c| {
                let key = c.key.clone().unwrap_or_default();
                json!({"kind": key.kind, "namespace": key.namespace, "name": key.name, "action": c.action, "generation": c.generation, "diff": c.diff})
            })
            .collect();
        let problems: Vec<_> = reply
            .problems
            .iter()
            .map(|p| json!({"file": p.file, "line": p.line, "column": p.column, "path": p.path, "message": p.message, "hint": p.hint}))
            .collect();
        print_json(&json!({"items": items, "problems": problems, "notes": reply.notes, "dryRun": dry_run}));
        return Ok(if refused { ExitCode::from(exit::NO) } else { ExitCode::SUCCESS });
    }
    accepted(reply)?;
    let suffix = if dry_run { " (dry run)" } else { "" };
    for change in &reply.changes {
        let key = change.key.clone().unwrap_or_default();
        println!("{}/{} {}{suffix}", key.kind.to_ascii_lowercase(), key.name, paint(&change.action));
    }
    for note in &reply.notes {
        println!("  {note}");
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn validate(namespace: &str, args: FilesArgs, format: Format) -> Outcome {
    let (count, problems) = shape_problems(&read_files(&args.file)?, namespace);
    if format == Format::Json {
        let list: Vec<_> = problems
            .iter()
            .map(|p| json!({"file": p.file, "line": p.line, "column": p.column, "path": p.path, "message": p.message, "hint": p.hint}))
            .collect();
        print_json(&json!({"resources": count, "problems": list}));
    } else {
        for problem in &problems {
            eprintln!("{problem}");
        }
    }
    match problems.len() {
        0 if format == Format::Json => Ok(ExitCode::SUCCESS),
        0 => {
            let valid = if count == 1 { "1 resource is valid".to_owned() } else { format!("{count} resources are valid") };
            println!("{valid}; what they refer to is checked by `probity apply --dry-run`");
            Ok(ExitCode::SUCCESS)
        }
        n => Err(Fail::no(format!("{n} problem{}", if n == 1 { "" } else { "s" }))),
    }
}

pub(super) async fn delete(api: &mut Api, args: DeleteArgs) -> Outcome {
    let (plural, _) = super::get::kind(&args.one.kind)?;
    let kind = match plural {
        "probes" => "Probe",
        "slos" => "SLO",
        "burnratepolicies" => "BurnRatePolicy",
        "receivers" => "Receiver",
        "routes" => "Route",
        "maintenances" => "Maintenance",
        "scenarios" => "Scenario",
        "probers" => {
            let request = RemoveProberRequest { request_id: request_id(), name: args.one.name.clone() };
            api.operator.call(async |mut c| c.remove_prober(request.clone()).await).await.map_err(|s| api.fail(&s))?;
            println!("prober {} is removed; slots that it did not report are missed(prober_lost)", args.one.name);
            return Ok(ExitCode::SUCCESS);
        }
        other => return Err(Fail::misuse(format!("{other} are no resources: they cannot be deleted"))),
    };
    let key = ResourceKey { kind: kind.to_owned(), namespace: api.namespace.clone(), name: args.one.name };
    let request = DeleteRequest { request_id: request_id(), key: Some(key), purge: args.purge };
    let reply = api.operator.call(async |mut c| c.delete(request.clone()).await).await.map_err(|s| api.fail(&s))?;
    report(&reply, Format::Table, false)
}

pub(super) fn explain(args: ExplainArgs) -> Outcome {
    if args.schema {
        print_json(&resources::json_schema());
        return Ok(ExitCode::SUCCESS);
    }
    let path = args.path.unwrap_or_default();
    match resources::explain(&path) {
        Some(doc) => {
            print_lines(&[doc.to_string()]);
            Ok(ExitCode::SUCCESS)
        }
        None => Err(Fail::no(format!("no field {path:?} (try `probity explain probe`)"))),
    }
}
