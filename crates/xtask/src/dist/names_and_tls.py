"""Runs the agent given as argument in a network of its own, where a name server and a receiver with
TLS are: what is linked statically has to look up names and trust the system's certificates all the
same. Wants `unshare --net --mount`, with the rights of root in there."""

import fcntl, http.server, os, pathlib, socket, ssl, struct, subprocess, sys, tempfile, threading

NAME = "siem.test"
agent = sys.argv[1]
work = pathlib.Path(tempfile.mkdtemp())


def openssl(*arguments):
    subprocess.run(["openssl", *arguments], cwd=work, check=True, capture_output=True)


def bind(text, place):
    """Puts `text` in place of a file of the system, for this process and its children."""
    file = work / pathlib.Path(place).name
    file.write_text(text)
    subprocess.run(["mount", "--bind", file, os.path.realpath(place)], check=True)


def loopback_up():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH22x", b"lo", 0x1 | 0x40))


def answer_names(asked):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 53))
        while True:
            query, peer = server.recvfrom(4096)
            at, labels = 12, []
            while query[at]:
                labels.append(query[at + 1 : at + 1 + query[at]].decode())
                at += 1 + query[at]
            question = query[12 : at + 5]
            is_known = ".".join(labels) == NAME and question[-4:-2] == b"\0\1"
            asked.append(".".join(labels))
            answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\x7f\0\0\1" if is_known else b""
            flags = b"\x81\x80" if labels[-2:] == ["siem", "test"] else b"\x81\x83"
            head = query[:2] + flags + b"\0\1" + struct.pack(">H", bool(answer)) + b"\0\0\0\0"
            server.sendto(head + question + answer, peer)


loopback_up()
for command in (
    "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.pem",
    f"req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={NAME} -keyout key.pem -out request.pem",
):
    openssl(*command.split())
(work / "names").write_text(f"subjectAltName=DNS:{NAME}\n")
openssl(*"x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out pem".split())
bind("nameserver 127.0.0.1\n", "/etc/resolv.conf")
bind("hosts: files dns\n", "/etc/nsswitch.conf")
trusted = pathlib.Path("/etc/ssl/certs/ca-certificates.crt")
bind(trusted.read_text() + (work / "ca.pem").read_text(), trusted)

asked, posts = [], []
threading.Thread(target=answer_names, args=(asked,), daemon=True).start()


class Receiver(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        posts.append((self.headers["Host"], len(self.rfile.read(int(self.headers["Content-Length"])))))
        self.reply(200, b"{}")

    def do_GET(self):
        self.reply(404, b"")

    def reply(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 443), Receiver)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(work / "pem", work / "key.pem")
server.socket = context.wrap_socket(server.socket, server_side=True)
threading.Thread(target=server.serve_forever, daemon=True).start()

home = work / "home"
(home / ".claude/projects/p").mkdir(parents=True)
(home / ".claude/projects/p/s.jsonl").write_text('{"type":"user","n":1}\n')
config = work / "config.toml"
config.write_text('[sink.siem]\nacknowledgement = "status"\n')
environment = {
    "HOME": str(home), "PATH": "/usr/bin:/bin", "CLAUDE_SIEM_ENDPOINT": f"https://{NAME}",
    "CLAUDE_SIEM_TOKEN": "token-of-a-check", "CLAUDE_SIEM_HMAC_SECRET": "secret-of-a-check-0123456789",
}
ended = subprocess.run(
    [agent, "--config", config, "run", "--once"], env=environment, capture_output=True, text=True, timeout=120
)
if ended.returncode or not posts or posts[0][0] != NAME or NAME not in asked:
    sys.exit(f"it ended with {ended.returncode}, {posts}, {asked}:\n{ended.stdout}{ended.stderr}")
print(f"looked up {NAME}, trusted the system's certificates, and shipped {len(posts)} batch(es)")
