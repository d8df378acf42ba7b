//! Ignores the tests that cannot run on this machine, with the reason.
//!
//! `build.rs` probes the machine once; `#[requires(...)]` turns a missing requirement into `#[ignore]`, so
//! that every test runner lists the test as ignored and never as passed.

use proc_macro::{Delimiter, TokenStream, TokenTree};

/// Each requirement: its name, its description, and whether this machine meets it.
const REQUIREMENTS: &[(&str, &str, bool)] = include!(concat!(env!("OUT_DIR"), "/requirements.rs"));

/// Ignores a test where one of the named requirements is missing. Must be placed above `#[test]`, which
/// would not see an `#[ignore]` that is added later.
///
/// ```ignore
/// #[requires(root, strace)]
/// #[test]
/// fn traces_another_user() {}
/// ```
#[proc_macro_attribute]
pub fn requires(names: TokenStream, test: TokenStream) -> TokenStream {
    if !is_test(&test) {
        return error("`#[requires]` belongs above `#[test]`");
    }
    let mut missing = Vec::new();
    for token in names {
        let TokenTree::Ident(name) = token else { continue };
        let name = name.to_string();
        match REQUIREMENTS.iter().find(|(known, ..)| *known == name) {
            Some((_, _, true)) => {}
            Some((_, needed, false)) => missing.push(*needed),
            None => return error(&format!("unknown requirement `{name}`")),
        }
    }
    if missing.is_empty() {
        return test;
    }
    let reason = format!("needs {}", missing.join(" and "));
    let mut ignored = parsed(&format!("#[ignore = {reason:?}]"));
    ignored.extend(test);
    ignored
}

/// Returns true if an attribute of the item names a test: `#[test]` or `#[tokio::test]`.
fn is_test(item: &TokenStream) -> bool {
    let mut tokens = item.clone().into_iter();
    let attributes = tokens.by_ref().take_while(|token| token.to_string() != "fn");
    attributes.into_iter().any(|token| match token {
        TokenTree::Group(group) if group.delimiter() == Delimiter::Bracket => {
            group.stream().into_iter().any(|token| token.to_string() == "test")
        }
        _ => false,
    })
}

fn error(message: &str) -> TokenStream {
    parsed(&format!("compile_error!({message:?});"))
}

fn parsed(code: &str) -> TokenStream {
    code.parse().expect("the code above is Rust")
}
