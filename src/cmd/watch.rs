//! Watching a reading: on a terminal the table is drawn anew in place, elsewhere only the lines that changed are printed.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};

use serde_json::Value;

use crate::Outcome;
use crate::api::Api;
use crate::output::print_lines;

pub(super) async fn watch(api: &mut Api, path: &str, lines: impl Fn(&Value) -> Vec<String>) -> Outcome {
    let terminal = std::io::stdout().is_terminal();
    let mut drawn = 0;
    let mut seen = BTreeSet::new();
    let mut stream = api.watch(path).await?;
    loop {
        let Some(value) = stream.next().await else {
            // A failover: the client finds another coordinator, or is told why it may watch no more.
            stream = api.watch(path).await?;
            continue;
        };
        let now = lines(&value);
        if terminal {
            let mut out = std::io::stdout().lock();
            if drawn > 0 {
                let _ = write!(out, "\u{1b}[{drawn}A\u{1b}[J");
            }
            drop(out);
            print_lines(&now);
            drawn = now.len();
        } else {
            let fresh: Vec<String> = now.iter().filter(|line| !seen.contains(*line)).cloned().collect();
            print_lines(&fresh);
            seen = now.into_iter().collect();
        }
    }
}
