//! Secrets of a request, to remove them from its response: an error page of a proxy may quote the
//! request, and the response is logged, shown, and stored with dead letters.

use data_encoding::BASE64;
use memchr::memmem;
use reqwest::header::HeaderMap;

/// Replacement of a secret.
const MASK: &[u8] = b"***";
/// Secrets that are shorter are not searched for: they would match any text.
const MIN_SECRET: usize = 6;

/// Secrets in the headers of a request.
pub(super) struct SentSecrets(Vec<Vec<u8>>);

impl SentSecrets {
    /// Collects the values of all headers that are marked as sensitive, and the secrets in them.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut secrets = Vec::new();
        for value in headers.values().filter(|value| value.is_sensitive()) {
            let value = value.as_bytes();
            secrets.push(value.to_vec());
            // A scheme such as `Bearer` may be left out.
            let last = value.rsplit(|byte| *byte == b' ').next().unwrap_or(value);
            secrets.push(last.to_vec());
            // User and password of the scheme `Basic`.
            let pair = BASE64.decode(last).unwrap_or_default();
            if let Some(at) = memchr::memchr(b':', &pair) {
                secrets.push(pair[at + 1..].to_vec());
            }
        }
        secrets.retain(|secret| secret.len() >= MIN_SECRET);
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        Self(secrets)
    }

    /// Replaces each secret in `text` by `***`, and the start of one at its end, where reading stopped.
    pub(super) fn remove_from(&self, text: &mut Vec<u8>) {
        for secret in &self.0 {
            let mut clean = Vec::new();
            let mut end = 0;
            for at in memmem::find_iter(text.as_slice(), secret) {
                clean.extend_from_slice(&text[end..at]);
                clean.extend_from_slice(MASK);
                end = at + secret.len();
            }
            if end > 0 {
                clean.extend_from_slice(&text[end..]);
                *text = clean;
            }
            let mut starts = (MIN_SECRET..secret.len()).rev().map(|length| &secret[..length]);
            if let Some(start) = starts.find(|start| text.ends_with(start)) {
                text.truncate(text.len() - start.len());
                text.extend_from_slice(MASK);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
        thread,
        time::Duration,
    };

    use reqwest::header::HeaderValue;

    use super::{
        super::{ClientSettings, exchange},
        *,
    };

    fn without_secrets(value: &str, text: &str) -> String {
        let mut value = HeaderValue::from_str(value).unwrap();
        value.set_sensitive(true);
        let headers = HeaderMap::from_iter([(reqwest::header::AUTHORIZATION, value)]);
        let mut text = text.as_bytes().to_vec();
        SentSecrets::of(&headers).remove_from(&mut text);
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn secret_is_removed_with_and_without_its_scheme() {
        let text = "got Bearer t0ken-of-us, and t0ken-of-us; t0ken";
        assert_eq!(without_secrets("Bearer t0ken-of-us", text), "got ***, and ***; t0ken");
        let basic = format!("Basic {}", BASE64.encode(b"joe:pass word"));
        let text = format!("{basic}; joe has `pass word`");
        assert_eq!(without_secrets(&basic, &text), "***; joe has `***`");
        assert_eq!(without_secrets("Bearer a", "a Bearer a"), "a ***");
        assert_eq!(without_secrets("abc", "abc"), "abc", "a short text is no secret");
    }

    /// Only the first bytes of a response are read: they may end in the middle of a secret.
    #[test]
    fn start_of_a_secret_at_the_end_is_removed() {
        let cut = |text: &str| without_secrets("Bearer t0ken-of-us", text);
        assert_eq!(cut("authorization: Bearer t0ken-o"), "authorization: ***");
        assert_eq!(cut("is t0ken-of-u"), "is ***");
        assert_eq!(cut("t0ken-o t0ken"), "t0ken-o t0ken");
    }

    /// The token was in the log, in `doctor` and in dead letters.
    #[tokio::test]
    async fn response_that_quotes_the_request_has_no_secret() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let server = thread::spawn(move || {
            let (mut stream, mut head) = (listener.accept().unwrap().0, [0; 4096]);
            let length = stream.read(&mut head).unwrap();
            let start = format!("HTTP/1.1 400 Bad\r\nContent-Length: {length}\r\n\r\n");
            stream.write_all(&[start.as_bytes(), &head[..length]].concat()).unwrap();
        });
        let connect_timeout = Duration::from_secs(20);
        let settings = ClientSettings { connect_timeout, ..ClientSettings::default() };
        let client = settings.client().unwrap();
        let request = client.get(&url).bearer_auth("t0ken-of-the-siem").header("x-other", "plain");
        let base = url.parse().unwrap();
        let answer = exchange(&client, &base, request, 8192, Duration::from_secs(20)).await;
        let body = String::from_utf8(answer.unwrap().body).unwrap();
        server.join().unwrap();
        assert!(body.contains("x-other: plain") && body.contains("authorization: ***"), "{body}");
        assert!(!body.contains("t0ken"), "{body}");
    }
}
