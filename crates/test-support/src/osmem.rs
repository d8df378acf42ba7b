//! `osmem-server`, an imitation of OpenSearch that keeps its documents in memory. It has no data
//! streams and no security.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use serde_json::Value;

/// The server. It stops when dropped, and when the test ends without dropping it.
pub struct Osmem {
    process: Child,
    address: String,
}

impl Osmem {
    /// Starts a server without documents on a free port of the loopback interface.
    pub fn start() -> Self {
        let mut process = Command::new(program())
            .args(["-addr", "127.0.0.1:0", "-no-ja"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let started: Value = serde_json::from_str(&line).unwrap();
        let address = started["url"].as_str().unwrap().trim_start_matches("http://").to_owned();
        Self { process, address }
    }

    /// URL of the server, without a path.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sends a request and returns the body of the response.
    pub fn call(&self, method: &str, path: &str, body: &str) -> Value {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let request = format!(
            "{method} {path} HTTP/1.0\r\nHost: {}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut response = Vec::new();
        stream.read_to_end(&mut response).unwrap();
        let start = response.windows(4).position(|it| it == b"\r\n\r\n").unwrap() + 4;
        serde_json::from_slice(&response[start..]).unwrap()
    }

    /// Returns `_id` and source of all documents of an index.
    pub fn documents(&self, index: &str) -> Vec<(String, Value)> {
        let mut documents = Vec::new();
        self.call("POST", &format!("/{index}/_refresh"), "");
        // Pages in the order of their ids: a response is at most 10,000 documents.
        let mut after = Value::Null;
        loop {
            let mut query = serde_json::json!({ "size": 1000, "sort": [{ "_id": "asc" }] });
            if !after.is_null() {
                query["search_after"] = serde_json::json!([after]);
            }
            let page = self.call("POST", &format!("/{index}/_search"), &query.to_string());
            let hits = page["hits"]["hits"].as_array().unwrap_or_else(|| panic!("{page}"));
            let Some(last) = hits.last() else { return documents };
            after = last["_id"].clone();
            for hit in hits {
                let id = hit["_id"].as_str().unwrap().to_owned();
                documents.push((id, hit["_source"].clone()));
            }
        }
    }
}

impl Drop for Osmem {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Returns the program in the environment that `cargo xtask test` installs.
fn program() -> PathBuf {
    let folder = env::var_os("AI_AGENT_SERVERS").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| {
        PathBuf::from(env::var_os("HOME").unwrap()).join(".cache/ai-agent-servers")
    });
    let versions = fs::read_dir(folder.join("lib")).unwrap().flatten();
    let program =
        |version: fs::DirEntry| version.path().join("site-packages/osmem_server/bin/osmem-server");
    versions.map(program).find(|path| path.is_file()).unwrap()
}
