//! Parameters of `GET /stats`.

use std::time::SystemTime;

use percent_encoding::percent_decode_str;

use crate::fleet::{InvalidCursor, StatsQuery, UnknownProblem};

/// Error of a parameter.
#[derive(Debug, thiserror::Error)]
pub(super) enum StatsQueryError {
    #[error("there is no such parameter, expected machine, user, problem, limit or cursor")]
    Unknown,
    #[error("the parameter `{0}` occurs twice")]
    Twice(&'static str),
    #[error("the parameter `{0}` is not UTF-8")]
    NotUtf8(&'static str),
    #[error("`limit` is not a number from 1 to {}", StatsQuery::MAX_LIMIT)]
    Limit,
    #[error(transparent)]
    Problem(#[from] UnknownProblem),
    #[error(transparent)]
    Cursor(#[from] InvalidCursor),
}

/// Parses the query of a request. An unknown parameter is an error: with a misspelt condition the
/// response would show other rows than the ones wanted.
pub(super) fn parse(query: &str, now: SystemTime) -> Result<StatsQuery, StatsQueryError> {
    let mut wanted = StatsQuery { limit: StatsQuery::LIMIT, ..StatsQuery::all(now) };
    let mut seen = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let names = ["machine", "user", "problem", "limit", "cursor"];
        let Some(name) = names.into_iter().find(|known| *known == name) else {
            return Err(StatsQueryError::Unknown);
        };
        if seen.contains(&name) {
            return Err(StatsQueryError::Twice(name));
        }
        seen.push(name);
        let value = value.replace('+', " ");
        let value = percent_decode_str(&value).decode_utf8();
        let value = value.map_err(|_| StatsQueryError::NotUtf8(name))?.into_owned();
        match name {
            "machine" => wanted.machine = Some(value),
            "user" => wanted.user = Some(value),
            "problem" => wanted.problem = Some(value.parse()?),
            "cursor" => wanted.after = Some(value.parse()?),
            _ => wanted.limit = limit(&value).ok_or(StatsQueryError::Limit)?,
        }
    }
    Ok(wanted)
}

fn limit(value: &str) -> Option<usize> {
    value.parse().ok().filter(|limit| (1..=StatsQuery::MAX_LIMIT).contains(limit))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::fleet::FleetProblem;

    #[test]
    fn parameters_are_decoded() {
        let query = parse("machine=b%C3%BCro+1&problem=gap&limit=7&user=", UNIX_EPOCH).unwrap();
        assert_eq!(query.machine.as_deref(), Some("büro 1"));
        assert_eq!(query.user.as_deref(), Some(""));
        assert_eq!((query.problem, query.limit), (Some(FleetProblem::Gap), 7));
        assert_eq!(parse("", UNIX_EPOCH).unwrap().limit, StatsQuery::LIMIT);
    }

    #[test]
    fn wrong_parameters_are_errors() {
        for query in [
            "machines=x",
            "machine=a&machine=b",
            "user=%ff",
            "problem=",
            "problem=Quiet",
            "limit=0",
            "limit=5001",
            "limit=-1",
            "cursor=x",
            "cursor=W10",
        ] {
            assert!(parse(query, UNIX_EPOCH).is_err(), "{query}");
        }
    }
}
