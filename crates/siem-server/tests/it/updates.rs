//! Releases of the agent over HTTP, and the commands that manage them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
    time::Duration,
};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use siem_protocol::{
    Digest,
    names::{header, problem},
    update::{
        ArtifactName, CatalogArtifact, CatalogRelease, Platform, ReleaseCatalog, Rollout,
        UpdateManifest,
    },
    verify_answer,
};
use siem_server::{FileStore, Limits, Receiver, ServeOptions, updates::ReleaseFolder};
use test_requires::requires;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::common::{SECRET, Server, TOKEN, keys, problem as problem_of};

const LINUX: &str = "ai-agent-0.3.0-linux-x86_64";
const MANIFEST: &str = "/update/manifest.json?os=linux&arch=x86_64";

fn platform(os: &str) -> Platform {
    Platform::new(os, "x86_64").unwrap()
}

/// Content of the program of a version; longer than a chunk in which files are read.
fn program(version: &str) -> Vec<u8> {
    version.bytes().cycle().take(300_000).collect()
}

/// Writes a folder with the programs of these versions for Linux.
fn write_dist(folder: &Path, versions: &[&str]) -> ReleaseCatalog {
    fs::create_dir_all(folder).unwrap();
    let releases = versions.iter().map(|version| {
        let name = ArtifactName::of(&version.parse().unwrap(), &platform("linux"));
        fs::write(folder.join(name.as_str()), program(version)).unwrap();
        CatalogRelease {
            version: version.parse().unwrap(),
            published_at: "2026-11-30T08:00:00Z".to_owned(),
            rollout: Rollout::ALL,
            artifacts: vec![CatalogArtifact::new(&platform("linux"), name, &program(version))],
            unknown: Default::default(),
        }
    });
    let catalog = ReleaseCatalog { releases: releases.collect(), ..ReleaseCatalog::default() };
    write_catalog(folder, &catalog);
    catalog
}

fn write_catalog(folder: &Path, catalog: &ReleaseCatalog) {
    fs::write(folder.join("manifest.json"), catalog.to_json().unwrap()).unwrap();
}

async fn serve_with(limits: Limits, options: ServeOptions) -> Server {
    let data = tempfile::tempdir().unwrap();
    let store = Arc::new(FileStore::open(data.path()).unwrap());
    let releases = ReleaseFolder::new(data.path().join("dist"));
    let receiver = Receiver::new(keys(), store).with_limits(limits).with_releases(releases);
    Server::serving(data, receiver, options).await
}

/// A receiver with the releases 0.2.0 and 0.3.0.
async fn serve() -> (Server, PathBuf) {
    let server = serve_with(Limits::default(), ServeOptions::default()).await;
    let dist = server.data.path().join("dist");
    write_dist(&dist, &["0.2.0", "0.3.0"]);
    (server, dist)
}

async fn ask(
    server: &Server,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
) -> reqwest::Response {
    let request = reqwest::Client::new().request(method, server.url(path)).bearer_auth(TOKEN);
    let request =
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    request.send().await.unwrap()
}

async fn get(server: &Server, path: &str, headers: &[(&str, &str)]) -> reqwest::Response {
    ask(server, Method::GET, path, headers).await
}

fn text<'a>(response: &'a reqwest::Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

async fn offered(server: &Server, version: &str) -> Vec<String> {
    let response = get(server, &format!("{MANIFEST}{version}"), &[]).await;
    assert_eq!(response.status(), 200);
    let manifest = UpdateManifest::parse(&response.bytes().await.unwrap()).unwrap();
    manifest.releases.iter().map(|release| release.version.to_string()).collect()
}

#[tokio::test]
async fn manifest_lists_newer_releases_of_the_platform() {
    let (server, dist) = serve().await;
    assert_eq!(offered(&server, "").await, ["0.3.0", "0.2.0"]);
    assert_eq!(offered(&server, "&version=0.2.0").await, ["0.3.0"]);
    assert_eq!(offered(&server, "&version=0.3.0").await, [""; 0]);
    write_dist(&dist, &["0.4.0-rc.1"]);
    assert_eq!(offered(&server, "&version=0.3.0").await, ["0.4.0-rc.1"], "at the next request");
}

#[tokio::test]
async fn manifest_is_signed_and_revalidated() {
    let (server, _) = serve().await;
    let nonce = "00112233445566778899aabbccddeeff";
    let first = get(&server, MANIFEST, &[(header::NONCE, nonce)]).await;
    let (etag, signature) =
        (text(&first, "etag").to_owned(), text(&first, header::SIGNATURE).to_owned());
    let body = first.bytes().await.unwrap();
    assert!(verify_answer(SECRET.as_bytes(), nonce, &body, &signature));
    let again = get(&server, MANIFEST, &[("if-none-match", &etag), (header::NONCE, nonce)]).await;
    assert_eq!(again.status(), 304);
    assert!(verify_answer(SECRET.as_bytes(), nonce, b"", text(&again, header::SIGNATURE)));
    assert_eq!(get(&server, MANIFEST, &[(header::NONCE, "x")]).await.status(), 400);
}

#[tokio::test]
async fn requests_for_updates_need_a_token() {
    let (server, _) = serve().await;
    for path in [MANIFEST, &format!("/update/{LINUX}")] {
        let anyone = reqwest::get(server.url(path)).await.unwrap();
        assert_eq!(problem_of(anyone).await.kind, problem::TOKEN);
    }
}

#[tokio::test]
async fn platform_without_releases_and_wrong_queries_are_refused() {
    let (server, dist) = serve().await;
    let kind = async |path: &str| problem_of(get(&server, path, &[]).await).await.kind;
    assert_eq!(kind("/update/manifest.json?os=macos&arch=x86_64").await, problem::NO_UPDATE);
    assert_eq!(kind("/update/manifest.json?os=linux").await, problem::MALFORMED);
    assert_eq!(kind("/update/manifest.json").await, problem::MALFORMED);
    assert_eq!(kind(&format!("{MANIFEST}&version=latest")).await, problem::MALFORMED);
    fs::write(dist.join("manifest.json"), "{").unwrap();
    assert_eq!(kind(MANIFEST).await, problem::INTERNAL);
    fs::remove_file(dist.join("manifest.json")).unwrap();
    assert_eq!(kind(MANIFEST).await, problem::NO_UPDATE);
    assert_eq!(kind(&format!("/update/{LINUX}")).await, problem::NO_UPDATE);
}

#[tokio::test]
async fn artifact_is_sent_whole_with_its_hash_as_etag() {
    let (server, _) = serve().await;
    let path = format!("/update/{LINUX}");
    let response = get(&server, &path, &[]).await;
    let etag = format!("\"{}\"", Digest::of(&program("0.3.0")));
    assert_eq!((response.status(), text(&response, "etag")), (StatusCode::OK, &*etag));
    assert_eq!(text(&response, "content-length"), "300000");
    assert_eq!(text(&response, "accept-ranges"), "bytes");
    assert_eq!(response.bytes().await.unwrap(), program("0.3.0"));
    let known = get(&server, &path, &[("if-none-match", &etag), ("range", "bytes=0-1")]).await;
    assert_eq!(known.status(), 304);
    assert_eq!(known.bytes().await.unwrap().len(), 0);
}

#[tokio::test]
async fn download_resumes_at_any_byte() {
    let (server, _) = serve().await;
    let (path, whole) = (format!("/update/{LINUX}"), program("0.3.0"));
    let etag = format!("\"{}\"", Digest::of(&whole));
    for start in [0, 1, 131_071, 131_072, 299_999] {
        let range = format!("bytes={start}-");
        let response = get(&server, &path, &[("range", &range), ("if-range", &etag)]).await;
        assert_eq!(response.status(), 206, "{start}");
        assert_eq!(text(&response, "content-range"), format!("bytes {start}-299999/300000"));
        assert_eq!(response.bytes().await.unwrap(), whole[start..]);
    }
    let end = get(&server, &path, &[("range", "bytes=-5")]).await;
    assert_eq!(end.bytes().await.unwrap(), whole[299_995..]);
}

#[tokio::test]
async fn stale_or_multiple_ranges_get_the_whole_artifact() {
    let (server, _) = serve().await;
    let path = format!("/update/{LINUX}");
    let many = format!("bytes={}", vec!["0-299999"; 5000].join(","));
    for headers in [
        [("range", "bytes=5-9"), ("if-range", "\"stale\"")],
        [("range", "bytes=5-9"), ("if-range", "Mon, 30 Nov 2026 08:00:00 GMT")],
        [("range", "bytes=0-1,5-9"), ("accept", "*/*")],
        [("range", &many), ("accept", "*/*")],
        [("range", "bytes=9-5"), ("accept", "*/*")],
    ] {
        let response = get(&server, &path, &headers).await;
        assert_eq!(response.status(), 200, "{}", &headers[0].1[..9]);
        assert_eq!(response.bytes().await.unwrap().len(), 300_000);
    }
}

#[tokio::test]
async fn range_beyond_the_end_names_the_size() {
    let (server, _) = serve().await;
    let path = format!("/update/{LINUX}");
    for range in ["bytes=300000-", "bytes=99999999999999999999-", "bytes=-0"] {
        let response = get(&server, &path, &[("range", range)]).await;
        assert_eq!(response.status(), 416, "{range}");
        assert_eq!(text(&response, "content-range"), "bytes */300000");
    }
}

#[tokio::test]
async fn head_has_the_headers_and_no_body() {
    let (server, _) = serve().await;
    let path = format!("/update/{LINUX}");
    let response = ask(&server, Method::HEAD, &path, &[("range", "bytes=0-9")]).await;
    assert_eq!((response.status(), text(&response, "content-length")), (StatusCode::OK, "300000"));
    assert_eq!(text(&response, "accept-ranges"), "bytes");
    assert_eq!(response.bytes().await.unwrap().len(), 0);
    assert_eq!(ask(&server, Method::POST, &path, &[]).await.status(), 405);
}

/// Sends a request whose path is not changed by a client.
async fn raw(server: &Server, path: &str) -> String {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn only_listed_artifacts_of_the_folder_are_served() {
    let (server, dist) = serve().await;
    fs::write(dist.join("ai-agent-unlisted"), "x").unwrap();
    fs::write(server.data.path().join("ai-agent-secret"), "secret").unwrap();
    for path in [
        "/update/ai-agent-unlisted",
        "/update/../ai-agent-secret",
        "/update/..%2fai-agent-secret",
        "/update/%2e%2e%2fai-agent-secret",
        "/update/ai-agent-%2e%2e%2f..%2fai-agent-secret",
        "/update/..%5cai-agent-secret",
        "/update//etc/passwd",
        "/update/%2fetc%2fpasswd",
        "/update/manifest%2ejson",
        "/update/.manifest.lock",
        "/update/ai-agent-%00",
        "/update/ai-agent-%ff",
        "/update/",
        "/update",
    ] {
        let answer = raw(&server, path).await;
        let refused = answer.starts_with("HTTP/1.1 404") || answer.starts_with("HTTP/1.1 400");
        assert!(refused && !answer.contains("secret"), "{path}: {answer}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn only_regular_files_are_served() {
    let (server, dist) = serve().await;
    let path = dist.join(LINUX);
    let outside = server.data.path().join("outside");
    fs::write(&outside, program("0.3.0")).unwrap();
    let status = async || raw(&server, &format!("/update/{LINUX}")).await[..12].to_owned();
    assert_eq!(status().await, "HTTP/1.1 200");

    fs::remove_file(&path).unwrap();
    assert_eq!(status().await, "HTTP/1.1 500", "missing");
    std::os::unix::fs::symlink(&outside, &path).unwrap();
    assert_eq!(status().await, "HTTP/1.1 500", "a link to a file of the same size and content");
    fs::remove_file(&path).unwrap();
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    assert_eq!(status().await, "HTTP/1.1 500", "a FIFO without a writer");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(status().await, "HTTP/1.1 500", "a directory");
    fs::remove_dir(&path).unwrap();
    fs::write(&path, "shorter").unwrap();
    assert_eq!(status().await, "HTTP/1.1 500", "another size than the manifest says");
}

/// A reader that takes a byte now and then must not hold a turn, a file and a connection.
#[tokio::test]
async fn slow_reader_of_an_artifact_is_disconnected() {
    let mut options = ServeOptions::default();
    options.write_timeout = Duration::from_millis(300);
    let server = serve_with(Limits::default(), options).await;
    let dist = server.data.path().join("dist");
    let mut catalog = write_dist(&dist, &["0.3.0"]);
    let large = vec![7; 64 << 20];
    let artifact = &mut catalog.releases[0].artifacts[0];
    *artifact = CatalogArtifact::new(&platform("linux"), artifact.artifact.clone(), &large);
    fs::write(dist.join(LINUX), &large).unwrap();
    write_catalog(&dist, &catalog);

    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let request =
        format!("GET /update/{LINUX} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut read = 0;
    let ended = async {
        let mut byte = [0; 1];
        while matches!(stream.read(&mut byte).await, Ok(1)) {
            read += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
            if read == 200 {
                // The buffers of both ends are full, and the receiver has closed: the rest comes at once.
                let mut rest = Vec::new();
                drop(stream.read_to_end(&mut rest).await);
                read += rest.len();
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ended).await.unwrap();
    assert!(read < large.len(), "the receiver sent all {read} bytes");
}

#[tokio::test]
async fn downloads_of_one_sender_wait_for_their_turn() {
    let mut limits = Limits::default();
    limits.patience = Duration::from_millis(50);
    let server = serve_with(limits, ServeOptions::default()).await;
    let dist = server.data.path().join("dist");
    let mut catalog = write_dist(&dist, &["0.3.0"]);
    let large = vec![7; 32 << 20];
    let artifact = &mut catalog.releases[0].artifacts[0];
    *artifact = CatalogArtifact::new(&platform("linux"), artifact.artifact.clone(), &large);
    fs::write(dist.join(LINUX), &large).unwrap();
    write_catalog(&dist, &catalog);

    let path = format!("/update/{LINUX}");
    let machine = |id: &'static str| [(header::MACHINE_ID, id)];
    let mut held = Vec::new();
    for _ in 0..4 {
        // The body is not read.
        held.push(get(&server, &path, &machine("m-1")).await);
    }
    let refused = get(&server, &path, &machine("m-1")).await;
    assert_eq!(refused.status(), 503);
    assert!(!text(&refused, "retry-after").is_empty());
    let unlisted = get(&server, "/update/ai-agent-unlisted", &machine("m-1")).await;
    assert_eq!(unlisted.status(), 503, "nothing is opened for a request that waits");
    assert_eq!(get(&server, &path, &machine("m-2")).await.status(), 200, "another machine");
    assert_eq!(ask(&server, Method::HEAD, &path, &machine("m-1")).await.status(), 200);
    drop(held);
    let again = async || get(&server, &path, &machine("m-1")).await.status() == 200;
    crate::common::eventually("a turn is free", again).await;
}

/// Runs `siem-server update`.
fn run(dist: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_siem-server"));
    command.arg("update").args(arguments).arg("--dist").arg(dist);
    command.stdin(Stdio::null()).output().unwrap()
}

fn succeed(dist: &Path, arguments: &[&str]) -> (String, String) {
    let output = run(dist, arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {errors}");
    (String::from_utf8(output.stdout).unwrap(), errors)
}

fn fail(dist: &Path, arguments: &[&str], code: i32) -> String {
    let output = run(dist, arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
    errors
}

fn list(dist: &Path) -> Value {
    serde_json::from_slice(&run(dist, &["list", "--json"]).stdout).unwrap()
}

#[tokio::test]
async fn rollout_is_changed_beside_a_running_receiver() {
    let (server, dist) = serve().await;
    let rollout = async || {
        let response = get(&server, MANIFEST, &[]).await;
        let manifest: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
        manifest["releases"][0]["rollout"].clone()
    };
    assert_eq!(rollout().await, json!({ "percent": 100 }));
    let change = async |arguments: &[&str]| {
        let arguments: Vec<_> = ["rollout", "0.3.0"].iter().chain(arguments).copied().collect();
        succeed(&dist, &arguments);
        rollout().await
    };
    assert_eq!(change(&["--percent", "10"]).await, json!({ "percent": 10 }));
    let groups = json!({ "percent": 10, "groups": ["dev", "ops team"] });
    assert_eq!(change(&["--group", "dev", "--group", "ops team"]).await, groups);
    let halted = json!({ "percent": 10, "groups": ["dev", "ops team"], "halted": true });
    assert_eq!(change(&["--halt"]).await, halted);
    let raised = json!({ "percent": 50, "groups": ["dev", "ops team"], "halted": true });
    assert_eq!(change(&["--percent", "50"]).await, raised, "it stays halted");
    let resumed = json!({ "percent": 50 });
    assert_eq!(change(&["--resume", "--no-groups"]).await, resumed);
    assert_eq!(list(&dist)[1]["rollout"], json!({ "percent": 100 }), "another release");
}

#[test]
fn wrong_rollout_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let dist = folder.path().join("dist");
    write_dist(&dist, &["0.3.0"]);
    let before = fs::read(dist.join("manifest.json")).unwrap();
    fail(&dist, &["rollout", "0.3.0"], 2);
    fail(&dist, &["rollout", "0.3.0", "--percent", "101"], 2);
    fail(&dist, &["rollout", "0.3", "--percent", "1"], 2);
    fail(&dist, &["rollout", "0.3.0", "--halt", "--resume"], 2);
    assert!(fail(&dist, &["rollout", "0.4.0", "--percent", "1"], 2).contains("0.4.0"));
    assert_eq!(fs::read(dist.join("manifest.json")).unwrap(), before);
    fs::write(dist.join("manifest.json"), "{").unwrap();
    fail(&dist, &["rollout", "0.3.0", "--percent", "1"], 1);
    assert_eq!(fs::read(dist.join("manifest.json")).unwrap(), b"{");
}

#[test]
fn concurrent_changes_of_rollouts_are_all_kept() {
    let folder = tempfile::tempdir().unwrap();
    let dist = folder.path().join("dist");
    write_dist(&dist, &["0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0"]);
    std::thread::scope(|scope| {
        for n in 1..=6 {
            let dist = &dist;
            scope.spawn(move || {
                succeed(dist, &["rollout", &format!("0.{n}.0"), "--percent", &n.to_string()]);
            });
        }
    });
    for release in list(&dist).as_array().unwrap() {
        let version = release["version"].as_str().unwrap();
        assert_eq!(release["rollout"]["percent"].to_string(), version[2..3], "{version}");
    }
}

#[test]
fn releases_are_added_once_and_never_changed() {
    let folder = tempfile::tempdir().unwrap();
    let (dist, built) = (folder.path().join("dist"), folder.path().join("built"));
    write_dist(&built, &["0.2.0"]);
    let add = |arguments: &[&str]| {
        let from = built.to_str().unwrap();
        let arguments: Vec<_> = ["add", from].iter().chain(arguments).copied().collect();
        run(&dist, &arguments)
    };
    assert_eq!(add(&["--percent", "30"]).status.code(), Some(0));
    assert_eq!(list(&dist)[0]["rollout"], json!({ "percent": 30 }));
    write_dist(&built, &["0.2.0", "0.3.0"]);
    let added = add(&[]);
    assert!(String::from_utf8_lossy(&added.stderr).contains("0.3.0 has unsigned artifacts"));
    assert!(String::from_utf8_lossy(&added.stdout).contains("0.2.0: unchanged"));
    let listed = list(&dist);
    assert_eq!(
        (&listed[0]["version"], &listed[0]["rollout"]),
        (&json!("0.3.0"), &json!({ "percent": 0 }))
    );
    assert_eq!(listed[1]["rollout"], json!({ "percent": 30 }), "a known one keeps its roll-out");
    assert_eq!(fs::read(dist.join(LINUX)).unwrap(), program("0.3.0"));

    let mut other = write_dist(&built, &["0.3.0"]);
    let artifact = &mut other.releases[0].artifacts[0];
    *artifact =
        CatalogArtifact::new(&platform("linux"), artifact.artifact.clone(), b"another program");
    fs::write(built.join(LINUX), "another program").unwrap();
    write_catalog(&built, &other);
    assert_eq!(add(&[]).status.code(), Some(1));
    assert_eq!(fs::read(dist.join(LINUX)).unwrap(), program("0.3.0"));

    // Another version with the name of a served file.
    let mut other_version = other.clone();
    other_version.releases[0].version = "0.4.0".parse().unwrap();
    write_catalog(&built, &other_version);
    assert_eq!(add(&[]).status.code(), Some(1));
    assert_eq!(fs::read(dist.join(LINUX)).unwrap(), program("0.3.0"));

    // The program of another system is added to the release.
    let name = ArtifactName::of(&"0.3.0".parse().unwrap(), &platform("windows"));
    fs::write(built.join(name.as_str()), "for Windows").unwrap();
    other.releases[0].artifacts =
        vec![CatalogArtifact::new(&platform("windows"), name, b"for Windows")];
    write_catalog(&built, &other);
    assert_eq!(add(&[]).status.code(), Some(0));
    assert_eq!(list(&dist).as_array().unwrap().len(), 3);
}

#[test]
fn damaged_artifact_is_neither_added_nor_listed_as_good() {
    let folder = tempfile::tempdir().unwrap();
    let (dist, built) = (folder.path().join("dist"), folder.path().join("built"));
    write_dist(&built, &["0.3.0"]);
    let mut damaged = program("0.3.0");
    damaged[200_000] ^= 1;
    fs::write(built.join(LINUX), &damaged).unwrap();
    let error = fail(&dist, &["add", built.to_str().unwrap()], 1);
    assert!(error.contains("SHA-256"), "{error}");
    for name in ["manifest.json", LINUX] {
        assert!(!dist.join(name).try_exists().unwrap(), "{name}");
    }

    write_dist(&dist, &["0.3.0"]);
    fail(&dist, &["list"], 0);
    fs::write(dist.join(LINUX), &damaged).unwrap();
    fail(&dist, &["list"], 1);
    assert!(list(&dist)[0]["problem"].as_str().unwrap().contains("SHA-256"));
}

#[test]
fn missing_or_damaged_artifact_is_added_again() {
    let folder = tempfile::tempdir().unwrap();
    let (dist, built) = (folder.path().join("dist"), folder.path().join("built"));
    write_dist(&built, &["0.3.0"]);
    let add = || succeed(&dist, &["add", built.to_str().unwrap()]).0;
    let added = format!("0.3.0: {LINUX} (0 %)\n");
    assert_eq!(add(), added);
    assert_eq!(add(), "0.3.0: unchanged\n");
    let mut damaged = program("0.3.0");
    damaged[200_000] ^= 1;
    fs::write(dist.join(LINUX), &damaged).unwrap();
    assert_eq!(add(), added);
    fs::remove_file(dist.join(LINUX)).unwrap();
    assert_eq!(add(), added);
    succeed(&dist, &["list"]);
}

/// The signature that an operator makes offline is the one that agents verify.
#[requires(minisign)]
#[test]
fn signature_of_minisign_is_verified_with_its_comment() {
    let folder = tempfile::tempdir().unwrap();
    let (dist, built) = (folder.path().join("dist"), folder.path().join("built"));
    let mut catalog = write_dist(&built, &["0.3.0"]);
    let key = |name: &str| {
        let (secret, public) =
            (folder.path().join(format!("{name}.key")), folder.path().join(format!("{name}.pub")));
        let mut generate = Command::new("minisign");
        generate.args(["-G", "-W", "-s"]).arg(&secret).arg("-p").arg(&public);
        assert!(generate.stdout(Stdio::null()).status().unwrap().success());
        (secret, public.to_str().unwrap().to_owned())
    };
    let ((secret, public), (_, other)) = (key("organisation"), key("other"));
    let mut sign = |comment: &str| {
        let mut sign = Command::new("minisign");
        sign.args(["-S", "-s"]).arg(&secret).args(["-t", comment, "-m"]).arg(built.join(LINUX));
        assert!(sign.stdin(Stdio::null()).status().unwrap().success());
        let minisig = fs::read_to_string(built.join(format!("{LINUX}.minisig"))).unwrap();
        catalog.releases[0].artifacts[0].minisig = Some(minisig);
        write_catalog(&built, &catalog);
    };
    let from = built.to_str().unwrap();
    sign("ai-agent 0.2.0 linux x86_64");
    assert!(fail(&dist, &["add", from, "--key", &public], 1).contains("ai-agent 0.2.0"));
    sign("ai-agent 0.3.0 linux x86_64");
    assert!(fail(&dist, &["add", from, "--key", &other], 1).contains("unknown key"));
    let (_, warnings) = succeed(&dist, &["add", from, "--key", &other, "--key", &public]);
    assert_eq!(warnings, "");
    succeed(&dist, &["list", "--key", &public]);
    fail(&dist, &["list", "--key", &other], 1);

    // A signature that was made after the manifest.
    let later = folder.path().join("later");
    write_dist(&built, &["0.3.0"]);
    fs::remove_file(built.join(format!("{LINUX}.minisig"))).unwrap();
    let (_, warnings) = succeed(&later, &["add", from]);
    assert!(warnings.contains("unsigned"), "{warnings}");
    let mut sign = Command::new("minisign");
    sign.args(["-S", "-s"]).arg(&secret).args(["-t", "ai-agent 0.3.0 linux x86_64", "-m"]);
    assert!(sign.arg(built.join(LINUX)).stdin(Stdio::null()).status().unwrap().success());
    let (added, warnings) = succeed(&later, &["add", from, "--key", &public]);
    assert_eq!(
        (added.as_str(), warnings.as_str()),
        ("0.3.0: ai-agent-0.3.0-linux-x86_64 (0 %)\n", "")
    );
    succeed(&later, &["list", "--key", &public]);
    fail(&dist, &["list", "--key", "no such file"], 2);
}

/// A roll-out can be halted while artifacts are copied, which takes long.
#[test]
fn artifacts_are_copied_before_the_manifest_is_locked() {
    let folder = tempfile::tempdir().unwrap();
    let (dist, built) = (folder.path().join("dist"), folder.path().join("built"));
    write_dist(&built, &["0.3.0"]);
    fs::create_dir(&dist).unwrap();
    let lock = fs::File::create(dist.join(".manifest.lock")).unwrap();
    lock.lock().unwrap();
    let mut add = Command::new(env!("CARGO_BIN_EXE_siem-server"));
    add.args(["update", "add", built.to_str().unwrap(), "--dist"]).arg(&dist);
    let mut add = add.stdout(Stdio::null()).spawn().unwrap();
    let copied = dist.join(format!(".{LINUX}.new"));
    let deadline = std::time::Instant::now() + Duration::from_secs(9);
    while !fs::metadata(&copied).is_ok_and(|it| it.len() == 300_000) {
        assert!(std::time::Instant::now() < deadline, "nothing was copied");
        std::thread::yield_now();
    }
    assert!(!dist.join("manifest.json").try_exists().unwrap());
    drop(lock);
    assert!(add.wait().unwrap().success());
    assert!(!copied.try_exists().unwrap());
    succeed(&dist, &["list"]);
}

#[test]
fn removed_release_is_neither_listed_nor_there() {
    let folder = tempfile::tempdir().unwrap();
    let dist = folder.path().join("dist");
    write_dist(&dist, &["0.3.0", "0.4.0"]);
    let (removed, _) = succeed(&dist, &["remove", "0.3.0"]);
    assert_eq!(removed, format!("removed 0.3.0: {LINUX}\n"));
    assert!(!dist.join(LINUX).try_exists().unwrap());
    assert_eq!(list(&dist).as_array().unwrap().len(), 1);
    assert!(fail(&dist, &["remove", "0.3.0"], 2).contains("there is no release 0.3.0"));
}

#[test]
fn artifact_that_cannot_be_deleted_is_named_and_keeps_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let dist = folder.path().join("dist");
    let mut catalog = write_dist(&dist, &["0.3.0", "0.4.0"]);
    let arm = Platform::new("linux", "aarch64").unwrap();
    let name = ArtifactName::of(&catalog.releases[0].version, &arm);
    fs::write(dist.join(name.as_str()), program("0.3.0")).unwrap();
    let artifact = CatalogArtifact::new(&arm, name.clone(), &program("0.3.0"));
    catalog.releases[0].artifacts.push(artifact);
    write_catalog(&dist, &catalog);
    fs::remove_file(dist.join(LINUX)).unwrap();
    fs::create_dir_all(dist.join(LINUX).join("directory")).unwrap();
    let failed = fail(&dist, &["remove", "0.3.0"], 1);
    assert!(failed.contains("cannot delete") && failed.contains(LINUX), "{failed}");
    assert!(!dist.join(name.as_str()).try_exists().unwrap());
    assert_eq!(list(&dist).as_array().unwrap().len(), 1);
}
