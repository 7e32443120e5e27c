//! `context`: names for clusters, in the user's own file.

use std::process::ExitCode;

use serde_json::json;

use crate::args::{ContextAddArgs, ContextCommand, Format, Global};
use crate::output::{Table, print_json, print_lines};
use crate::settings::{Context, Contexts};
use crate::{Fail, Outcome};

pub(super) fn run(command: ContextCommand, global: &Global) -> Outcome {
    match command {
        ContextCommand::List => list(global),
        ContextCommand::Use { name } => choose(&name),
        ContextCommand::Add(args) => add(args, global),
    }
}

fn list(global: &Global) -> Outcome {
    let contexts = Contexts::load()?;
    let current = global.context.as_ref().or(contexts.current.as_ref());
    if global.output == Format::Json {
        let items: Vec<_> = contexts
            .contexts
            .iter()
            .map(|(name, c)| {
                json!({"name": name, "current": Some(name) == current, "server": c.server, "tlsDir": c.tls_dir, "namespace": c.namespace, "token": c.token.is_some()})
            })
            .collect();
        print_json(&json!({"items": items}));
        return Ok(ExitCode::SUCCESS);
    }
    if contexts.contexts.is_empty() {
        println!("no contexts; `probity context add NAME --server HOST:PORT --tls-dir DIR` makes one");
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&["CURRENT", "NAME", "SERVER", "TLS DIR", "NAMESPACE", "TOKEN"]);
    for (name, context) in &contexts.contexts {
        let mark = if Some(name) == current { "*" } else { "" };
        let dash = |text: Option<String>| text.filter(|t| !t.is_empty()).unwrap_or_else(|| "-".to_owned());
        table.row([
            mark.to_owned(),
            name.clone(),
            dash(Some(context.server.join(","))),
            dash(context.tls_dir.as_ref().map(|d| d.display().to_string())),
            dash(context.namespace.clone()),
            // Never the token itself.
            if context.token.is_some() { "yes" } else { "-" }.to_owned(),
        ]);
    }
    print_lines(&table.lines());
    Ok(ExitCode::SUCCESS)
}

fn choose(name: &str) -> Outcome {
    let mut contexts = Contexts::load()?;
    contexts.get(name)?;
    contexts.current = Some(name.to_owned());
    contexts.save()?;
    println!("context {name} is used from now on");
    Ok(ExitCode::SUCCESS)
}

fn add(args: ContextAddArgs, global: &Global) -> Outcome {
    if args.name.is_empty() || args.name.chars().any(char::is_whitespace) {
        return Err(Fail::misuse(format!("{:?} is no name for a context", args.name)));
    }
    let token = args.token_file.as_deref().map(super::ca::read_token).transpose()?;
    // The file is used from anywhere.
    let tls_dir = global.tls_dir.as_ref().map(|d| std::path::absolute(d).unwrap_or_else(|_| d.clone()));
    let context = Context { server: global.server.clone(), tls_dir, namespace: global.namespace.clone(), token };
    let mut contexts = Contexts::load()?;
    let known = contexts.contexts.insert(args.name.clone(), context).is_some();
    if contexts.current.is_none() {
        contexts.current = Some(args.name.clone());
    }
    let path = contexts.save()?;
    println!("context {} {} {}", args.name, if known { "replaced in" } else { "added to" }, path.display());
    Ok(ExitCode::SUCCESS)
}
