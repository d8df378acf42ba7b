//! A data directory whose disk does not answer.

use super::*;

/// Compiles a library that makes calls of the C library hang; its source belongs to the tests of the agent.
fn hanging_calls(installed: &Installed) -> PathBuf {
    let library = installed.path("hanging_calls.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/support/hanging_calls.c");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-o"]).args([&library, &source]).arg("-ldl");
    assert!(compiler.status().unwrap().success());
    library
}

fn new_token(data: &Path) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_siem-server"));
    let output = command.args(["tokens", "new", "--scope", "ingest", "--data"]).arg(data).output();
    String::from_utf8(output.unwrap().stdout).unwrap().trim().to_owned()
}

/// Tokens are looked up in files. When that was done by the threads that serve requests, as many requests as
/// there are threads stopped the whole receiver: probes, other requests, and the signal to end.
#[tokio::test]
async fn requests_that_wait_for_the_disk_hold_up_no_probe() {
    let installed = Installed::new("[shutdown]\ndelay = \"0s\"\ngrace = \"100ms\"\n");
    let (library, control) = (hanging_calls(&installed), installed.path("hanging"));
    fs::create_dir(&control).unwrap();
    let mut command = installed.command("serve");
    command.env("LD_PRELOAD", library).env("HANG_DIR", &control);
    let mut serving = Serving::spawn(&installed, &mut command);
    let data = installed.path("data");
    let token = new_token(&data);
    fs::write(control.join("stat"), data.to_str().unwrap()).unwrap();

    let client = reqwest::Client::builder().timeout(Duration::from_secs(20)).build().unwrap();
    let threads = std::thread::available_parallelism().unwrap().get();
    for _ in 0..2 * threads {
        tokio::spawn(batch(&client, &serving.url, &token).send());
    }
    for _ in 0..50 {
        let response = client.get(format!("{}/healthz", serving.url)).send().await.unwrap();
        assert_eq!(response.status(), 200);
    }
    serving.signal("-TERM");
    assert_eq!(serving.wait().await.code(), Some(0));
    assert_eq!(serving.logged("shutdown_timeout").len(), 1, "the requests were waiting");
}
