#!/usr/bin/env python3
"""Time from a restart, with every file of the data known, until a new record is at the receiver.

  restart.py --runner DIR/run.py --data DIR/many --sink PATH --bin PATH --out DIR --state DIR [--port N] [--runs N]

Catches up once; then, `runs` times: stops the agent (SIGTERM), appends a record to one file, starts the
agent, and waits for the record. Prints one JSON line: the seconds from the start of the process to the
arrival for each run, and the lost and repeated records.
"""
import argparse, importlib.util, json, os, signal, time


def main():
    p = argparse.ArgumentParser()
    for name in ("runner", "data", "sink", "bin", "out", "state"):
        p.add_argument("--" + name, required=True)
    p.add_argument("--port", type=int, default=9900)
    p.add_argument("--runs", type=int, default=3)
    a = p.parse_args()
    spec = importlib.util.spec_from_file_location("run", a.runner)
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    # Arguments that the runner's Peer and Sink read.
    a.bins, a.flush_ms, a.pin, a.sink_pin, a.verify = {"ai-agent": os.path.abspath(a.bin)}, 0, "", "", False
    a.out, a.state = os.path.abspath(a.out), os.path.abspath(a.state)
    os.makedirs(a.out, exist_ok=True)
    tree = os.path.join(os.path.abspath(a.data), "projects")
    man = json.load(open(os.path.join(a.data, "manifest.json")))
    peer = run.Peer("ai-agent", a, tree)
    ids = run.expected(a.data, peer.j["drops"])
    path = os.path.join(tree, sorted(man["file"])[len(man["file"]) // 2])
    size = os.path.getsize(path)
    run.warm(tree)
    peer.reset()
    sink = run.Sink(a, a.data)
    took = []
    try:
        peer.start()
        run.wait_done(a, peer, ids, 60, 900)
        for i in range(a.runs):
            time.sleep(1)
            peer.kill(signal.SIGTERM)
            rid = man["records"] + i
            line = f'{{"type":"user","message":{{"role":"user","content":"after a restart"}},"uuid":"00000000-0000-4000-8000-{rid:012x}","benchid":{rid}}}\n'
            with open(path, "ab") as f:
                f.write(line.encode())
            began = peer.start()
            until = time.monotonic() + 60
            got = {}
            while rid not in got and time.monotonic() < until:
                time.sleep(.01)
                got = dict(json.loads(run.http(a.port, "/arrivals")))
            took.append((got[rid] - began) / 1e9 if rid in got else None)
        lost, extra = run.missing(a, ids)
        print(json.dumps({"seconds": took, "lost": lost, "extra": extra, "dups": run.stats(a.port)["dups"]}))
    finally:
        peer.kill()
        sink.stop()
        os.truncate(path, size)
        run.shutil.rmtree(peer.state, ignore_errors=True)


if __name__ == "__main__":
    main()
