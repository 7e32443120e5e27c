//! Go's regular expressions (RE2 syntax) as Rust's `regex` has them.
//!
//! Both are automata without backtracking and share almost all syntax. What differs is translated: a `{` that begins no repetition is
//! itself, `\d`, `\w`, `\s` and `\b` know ASCII only, `\Q...\E` quotes, octal escapes, and inside a class `[`, `&&`, `--` and `~~` are
//! nothing special. `\C` (any byte) is refused.

use std::iter::Peekable;
use std::str::Chars;

/// Memory of one compiled expression, as for those of resources.
const COMPILED_BYTES_MAX: usize = 1 << 20;

/// Translates, and checks that the result can be compiled.
pub fn from_go(pattern: &str) -> Result<String, String> {
    let translated = translate(pattern).map_err(|e| format!("{pattern:?} is no regular expression: {e}"))?;
    regex::bytes::RegexBuilder::new(&translated).size_limit(COMPILED_BYTES_MAX).build().map(|_| translated).map_err(|e| {
        let line = e.to_string().lines().last().unwrap_or_default().trim().to_owned();
        format!("{pattern:?} is no regular expression: {line}")
    })
}

fn translate(pattern: &str) -> Result<String, &'static str> {
    let mut out = String::with_capacity(pattern.len() + 8);
    let mut rest = pattern.chars().peekable();
    let mut class = false;
    while let Some(c) = rest.next() {
        match c {
            '\\' => escape(&mut rest, class, &mut out)?,
            '[' if class => match rest.peek() {
                Some(':') => out.push('['),
                _ => out.push_str("\\["),
            },
            '[' => {
                class = true;
                out.push('[');
                if rest.next_if_eq(&'^').is_some() {
                    out.push('^');
                }
                // A bracket in the first place is itself.
                if rest.next_if_eq(&']').is_some() {
                    out.push_str("\\]");
                }
            }
            ']' if class => {
                // The end of a class of POSIX is not the end of this one.
                let posix = out.ends_with(':') && out.rfind("[:").and_then(|at| out.get(at + 2..out.len() - 1)).is_some_and(|name| !name.contains(':'));
                out.push(']');
                class = posix;
            }
            '&' | '~' if class => {
                out.push('\\');
                out.push(c);
            }
            // The first one begins a range if it comes first, and else makes one that ends with the second.
            '-' if class && rest.peek() == Some(&'-') && (out.ends_with('[') || out.ends_with("[^")) => out.push_str("\\-"),
            '-' if class && rest.next_if_eq(&'-').is_some() => out.push_str("-\\-"),
            '{' if !class && !repetition(&rest) => out.push_str("\\{"),
            c => out.push(c),
        }
    }
    Ok(out)
}

/// Whether what follows a `{` makes it a repetition: `n}`, `n,}` or `n,m}`.
fn repetition(rest: &Peekable<Chars<'_>>) -> bool {
    let text: String = rest.clone().take_while(|c| *c != '}').take(12).collect();
    let closed = rest.clone().nth(text.chars().count()) == Some('}');
    let number = |t: &str| !t.is_empty() && t.chars().all(|c| c.is_ascii_digit());
    closed
        && match text.split_once(',') {
            None => number(&text),
            Some((from, to)) => number(from) && (to.is_empty() || number(to)),
        }
}

fn escape(rest: &mut Peekable<Chars<'_>>, class: bool, out: &mut String) -> Result<(), &'static str> {
    let Some(c) = rest.next() else { return Err("it ends with a backslash") };
    match c {
        'd' if class => out.push_str("0-9"),
        'd' => out.push_str("[0-9]"),
        'D' => out.push_str("[^0-9]"),
        'w' if class => out.push_str("0-9A-Za-z_"),
        'w' => out.push_str("[0-9A-Za-z_]"),
        'W' => out.push_str("[^0-9A-Za-z_]"),
        's' if class => out.push_str("\\t\\n\\f\\r "),
        's' => out.push_str("[\\t\\n\\f\\r ]"),
        'S' => out.push_str("[^\\t\\n\\f\\r ]"),
        'b' => out.push_str("(?-u:\\b)"),
        'B' => out.push_str("(?-u:\\B)"),
        'C' => return Err("\\C (any byte) is not supported"),
        'Q' => {
            let mut quoted = String::new();
            while let Some(c) = rest.next() {
                if c == '\\' && rest.next_if_eq(&'E').is_some() {
                    break;
                }
                quoted.push(c);
            }
            out.push_str(&regex::escape(&quoted));
        }
        '0'..='7' => {
            let mut value = c.to_digit(8).unwrap_or(0);
            let more = rest.peek().is_some_and(|d| d.is_digit(8));
            if c != '0' && !more {
                return Err("a reference to a group (\\1) is not supported");
            }
            for _ in 0..2 {
                let Some(digit) = rest.peek().and_then(|d| d.to_digit(8)) else { break };
                value = value * 8 + digit;
                rest.next();
            }
            out.push_str(&format!("\\x{{{value:x}}}"));
        }
        c => {
            out.push('\\');
            out.push(c);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_go_says_and_what_rust_hears() {
        for (go, text, matches) in [
            (r#"{"status":"ok"}"#, r#"{"status":"ok"}"#, true),
            (r"a{2}", "aa", true),
            (r"a{2,}", "a", false),
            (r"a{,2}", "a{,2}", true),
            (r"{{.*}}", "{{x}}", true),
            (r"^\d+$", "12", true),
            (r"^\d$", "\u{0663}", false),
            (r"^\w$", "ä", false),
            (r"^[\w.]+$", "a.b_9", true),
            (r"^[^\d]$", "ä", true),
            (r"\bok\b", "is ok.", true),
            (r"[[]x", "[x", true),
            (r"[]x]+$", "x]", true),
            (r"^[[:alpha:]]+[0-9]$", "ab1", true),
            (r"^[a&&b]+$", "a&b", true),
            (r"^[+--]$", ",", true),
            (r"^[--/]$", ".", true),
            (r"\Q1+1=2\E!", "1+1=2!", true),
            (r"\101\x42", "AB", true),
            (r"(?i)^ssh-2\.0-", "SSH-2.0-x", true),
            (r"(?s)a.b$", "a\nb", true),
            (r"a.b", "a\nb", false),
            (r"^\+OK", "+OK", true),
            (r"PING :([^ ]+)", "PING :x y", true),
        ] {
            let rust = from_go(go).unwrap_or_else(|e| panic!("{go}: {e}"));
            let regex = regex::bytes::Regex::new(&rust).expect("compiled before");
            assert_eq!(regex.is_match(text.as_bytes()), matches, "{go} is {rust}, on {text:?}");
        }
        for wrong in [r"\C", r"(a)\1", "(", r"x\", "a{2,1}", r"(?=x)"] {
            assert!(from_go(wrong).is_err(), "{wrong}");
        }
    }
}
