//! Kinds of tools, servers of MCP tools, and hosts of URLs.

use super::cursor::plain;

/// Kind of a tool: what its call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Execute,
    Read,
    Write,
    Search,
    Fetch,
    Mcp,
    Agent,
    Other,
}

impl Kind {
    /// Returns the kind of the tool of this name, given as the inside of a JSON string.
    pub(super) fn of(name: &str) -> Self {
        match &*plain(name) {
            "Bash" | "PowerShell" | "Monitor" | "KillShell" | "KillBash" | "TaskStop" => {
                Self::Execute
            }
            "Read" | "NotebookRead" | "LS" | "BashOutput" | "TaskOutput" => Self::Read,
            "Write" | "Edit" | "MultiEdit" | "NotebookEdit" => Self::Write,
            "Glob" | "Grep" | "WebSearch" | "web_search" | "ToolSearch" | "LSP" => Self::Search,
            "WebFetch" | "web_fetch" => Self::Fetch,
            "ListMcpResourcesTool" | "ReadMcpResourceTool" => Self::Mcp,
            "Task" | "Agent" | "SendMessage" | "Skill" => Self::Agent,
            name if name.starts_with("mcp__") => Self::Mcp,
            _ => Self::Other,
        }
    }

    /// Value of the field.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Execute => "execute",
            Self::Read => "read",
            Self::Write => "write",
            Self::Search => "search",
            Self::Fetch => "fetch",
            Self::Mcp => "mcp",
            Self::Agent => "agent",
            Self::Other => "other",
        }
    }
}

/// Returns the server in the name `mcp__SERVER__TOOL`.
pub(super) fn mcp_server(name: &str) -> Option<&str> {
    let rest = name.strip_prefix("mcp__")?;
    let server = rest.split_once("__").map_or(rest, |(server, _)| server);
    (!server.is_empty()).then_some(server)
}

/// Returns the host of a URL in lower case, without user and port. `None` if there is none, or if it
/// has characters that no host has.
pub(super) fn host(url: &str) -> Option<String> {
    let url = plain(url);
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#', '\\']).next()?;
    let host = authority.rsplit('@').next()?;
    let host = match host.split_once(']') {
        Some((address, _)) => address.strip_prefix('[')?,
        None => host.split(':').next()?,
    };
    let is_host = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
    (!host.is_empty() && host.chars().all(is_host)).then(|| host.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_has_no_user_port_or_path() {
        for (url, expected) in [
            ("https://example.com", Some("example.com")),
            (r"https:\/\/Example.COM\/a", Some("example.com")),
            ("https://user:secret@example.com:8443/a@b?c", Some("example.com")),
            ("http://[::1]:80/", Some("::1")),
            ("http://127.0.0.1?x", Some("127.0.0.1")),
            (r"http://a.example\\@b.example/", Some("a.example")),
            ("https://grüße.example/", Some("grüße.example")),
            ("file:///etc/passwd", None),
            ("example.com/a", None),
            ("https://", None),
            (r#"https://a\"b/"#, None),
        ] {
            assert_eq!(host(url).as_deref(), expected, "{url}");
        }
    }

    #[test]
    fn server_is_between_the_double_underscores() {
        assert_eq!(mcp_server("mcp__claude_ai_Linear__get_issue"), Some("claude_ai_Linear"));
        assert_eq!(mcp_server("mcp__a"), Some("a"));
        assert_eq!(mcp_server("mcp____a"), None);
        assert_eq!(mcp_server("Bash"), None);
    }
}
