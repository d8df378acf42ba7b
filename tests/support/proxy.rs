//! An HTTP proxy.

use std::{
    io::{self, BufRead, BufReader, Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

/// A proxy that records requests.
pub(crate) struct Proxy {
    port: u16,
    seen: Arc<Mutex<Vec<String>>>,
    wanted: Arc<Mutex<Option<String>>>,
}

impl Proxy {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let proxy = Self { port, seen: Arc::default(), wanted: Arc::default() };
        let (seen, wanted) = (Arc::clone(&proxy.seen), Arc::clone(&proxy.wanted));
        thread::spawn(move || {
            for client in listener.incoming() {
                let (seen, wanted) = (Arc::clone(&seen), Arc::clone(&wanted));
                thread::spawn(move || drop(serve(client.unwrap(), &seen, &wanted)));
            }
        });
        proxy
    }

    /// Requires this user and password from now on.
    pub(crate) fn wants(self, user: &str, password: &str) -> Self {
        let pair = data_encoding::BASE64.encode(format!("{user}:{password}").as_bytes());
        *self.wanted.lock().unwrap() = Some(format!("Basic {pair}"));
        self
    }

    /// Requires no credentials any more.
    pub(crate) fn opens(&self) {
        *self.wanted.lock().unwrap() = None;
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// URL with a user and a password.
    pub(crate) fn url_of(&self, user: &str, password: &str) -> String {
        format!("http://{user}:{password}@127.0.0.1:{}", self.port)
    }

    /// Method and target of each request so far.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

fn serve(
    mut client: TcpStream,
    seen: &Mutex<Vec<String>>,
    wanted: &Mutex<Option<String>>,
) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    while let Some((first, headers)) = read_head(&mut reader)? {
        let mut words = first.split(' ');
        let (method, target) = (words.next().unwrap(), words.next().unwrap_or_default());
        seen.lock().unwrap().push(format!("{method} {target}"));
        let header = |name: &str| {
            let found = headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.clone())
        };
        let length = header("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let wanted = wanted.lock().unwrap().clone();
        if wanted.is_some() && header("proxy-authorization") != wanted {
            client.write_all(
                b"HTTP/1.1 407 Who are you\r\nProxy-Authenticate: Basic realm=\"p\"\r\n\
                  Content-Length: 0\r\n\r\n",
            )?;
            continue;
        }
        if method == "CONNECT" {
            let server = TcpStream::connect(target)?;
            client.write_all(b"HTTP/1.1 200 Go ahead\r\n\r\n")?;
            return tunnel(client, server);
        }
        let (authority, path) =
            target.strip_prefix("http://").and_then(|rest| rest.split_once('/')).unwrap();
        let mut server = TcpStream::connect(authority)?;
        write!(server, "{method} /{path} HTTP/1.1\r\nConnection: close\r\n")?;
        for (name, value) in &headers {
            if !name.to_ascii_lowercase().starts_with("proxy-") {
                write!(server, "{name}: {value}\r\n")?;
            }
        }
        server.write_all(b"\r\n")?;
        server.write_all(&body)?;
        // The receivers of the tests keep a connection open, so the other side ends it.
        server.shutdown(Shutdown::Write)?;
        io::copy(&mut server, &mut client)?;
    }
    Ok(())
}

type Head = (String, Vec<(String, String)>);

fn read_head(reader: &mut impl BufRead) -> io::Result<Option<Head>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    let headers = lines.iter().skip(1).filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    Ok(Some((lines.swap_remove(0), headers)))
}

fn tunnel(client: TcpStream, server: TcpStream) -> io::Result<()> {
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || {
        drop(io::copy(&mut from_client, &mut to_server));
        drop(to_server.shutdown(Shutdown::Write));
    });
    let (mut from_server, mut to_client) = (server, client);
    io::copy(&mut from_server, &mut to_client)?;
    to_client.shutdown(Shutdown::Write)
}
