//! Option for additional headers of requests, such as one with an API key.

use std::{collections::BTreeMap, path::Path};

use ai_agent_stage::BuildError;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use crate::{config::Secret, stages::AgentContext, text::causes};

/// Returns the headers that are configured by value, or by a file with `Name: value` on each line;
/// lines that are empty or start with `#` are skipped.
///
/// # Errors
/// [`BuildError`] if a name or value is invalid, or the file cannot be used. It contains no value.
pub(super) fn headers(
    values: Option<&BTreeMap<String, Secret>>,
    file: Option<&Path>,
    context: &AgentContext,
) -> Result<HeaderMap, BuildError> {
    let mut headers = HeaderMap::new();
    for (name, value) in values.into_iter().flatten() {
        insert(&mut headers, name, value.expose())
            .map_err(|problem| BuildError::invalid("headers", problem))?;
    }
    let Some(path) = file else { return Ok(headers) };
    let wrong = |problem: String| {
        let path = path.display();
        BuildError::invalid("headers_file", format!("`{path}` cannot be used: {problem}"))
    };
    let text = Secret::from_file(&context.paths.expand(path));
    let text = text.map_err(|error| wrong(causes(&error)))?;
    for (number, line) in (1..).zip(text.expose().lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((name, value)) = line.split_once(':') else {
            return Err(wrong(format!("line {number} is not of the form `Name: value`")));
        };
        insert(&mut headers, name.trim_end(), value.trim())
            .map_err(|problem| wrong(format!("line {number} {problem}")))?;
    }
    Ok(headers)
}

fn insert(headers: &mut HeaderMap, name: &str, value: &str) -> Result<(), String> {
    let Ok(known) = HeaderName::try_from(name) else {
        return Err("has a name that is no name of a header".to_owned());
    };
    let Ok(mut value) = HeaderValue::try_from(value) else {
        return Err(format!("has a value for `{known}` that a header cannot contain"));
    };
    value.set_sensitive(true);
    headers.insert(known, value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::secure_file;

    fn value(text: &str) -> Secret {
        Secret::new(text).unwrap()
    }

    fn of_file(text: &str) -> Result<HeaderMap, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("headers");
        secure_file::replace(&path, text.as_bytes()).unwrap();
        let found = headers(None, Some(&path), &crate::test_context::context());
        found.map_err(|error| error.to_string())
    }

    #[test]
    fn headers_come_from_values_or_a_file() {
        let context = crate::test_context::context();
        let values = BTreeMap::from([("Api-Key".to_owned(), value("k3y"))]);
        let found = headers(Some(&values), None, &context).unwrap();
        assert_eq!(found["api-key"], "k3y");
        assert!(!format!("{found:?}").contains("k3y"));
        assert!(headers(None, None, &context).unwrap().is_empty());
        let found =
            of_file("# for the tenant\nX-Tenant: a\n\nAuthorization : Bearer a:b\r\n").unwrap();
        assert_eq!(
            (&found["x-tenant"], &found["authorization"]),
            (&"a".parse().unwrap(), &"Bearer a:b".parse().unwrap())
        );
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn invalid_headers_are_refused_without_their_values() {
        let context = crate::test_context::context();
        for (name, text, word) in [("x y", "s3cr3t", "has a name"), ("x", "s3cr3t\n1", "`x`")] {
            let values = BTreeMap::from([(name.to_owned(), value(text))]);
            let error = headers(Some(&values), None, &context).unwrap_err().to_string();
            assert!(error.starts_with("`headers` ") && error.contains(word), "{error}");
            assert!(!error.contains("s3cr3t"), "{error}");
        }
        for (text, word) in
            [("a: b\ns3cr3t", "line 2 is not"), ("s3 cr3t: s3cr3t", "line 1 has a name")]
        {
            let error = of_file(text).unwrap_err();
            assert!(error.contains(word) && !error.contains("s3cr3t"), "{error}");
        }
        let missing = headers(None, Some(Path::new("/no/such/file")), &context).unwrap_err();
        assert!(missing.to_string().starts_with("`headers_file` "), "{missing}");
    }
}
