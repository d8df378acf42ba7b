# The everyday commands. `just` alone lists them.

_list:
    @just --list --unsorted

# Runs the agent and a receiver on your sessions, or on samples
demo *options:
    cargo xtask demo {{options}}

# Runs every check, as CI does
test *options:
    cargo xtask test {{options}}

# Measures the agent beside syslog-ng: `just bench --full` takes half an hour
bench *options:
    cargo xtask bench {{options}}

# Runs the tests whose names contain a word
only word:
    cargo nextest run --workspace {{word}}

# Formats the code
fmt:
    cargo fmt --all

# Finds what the lints complain about
lint:
    cargo clippy --workspace --all-targets -- -D warnings

# Opens the documentation
doc:
    cargo doc --no-deps --workspace --open

# Lists the stages, or shows one: `just stages show meta`
stages *arguments:
    cargo run --quiet --package ai-agent -- stages {{arguments}}

# Shows what would be shipped from this machine, and changes nothing
dry-run *options:
    cargo run --quiet --package ai-agent -- run --test {{options}}

# Runs a receiver: `just receiver --listen 127.0.0.1:8080`, secrets in the environment
receiver *options:
    cargo run --quiet --package siem-server --bin demo-server -- {{options}}

# Lets the kernel log every call of docker: docs/audit.md
audit-install *options:
    cargo run --quiet --package ai-agent -- audit install {{options}}

# Shows who ended containers, and follows
audit-tail *options:
    cargo run --quiet --package ai-agent -- audit tail {{options}}

# Takes the audit rules away again
audit-uninstall *options:
    cargo run --quiet --package ai-agent -- audit uninstall {{options}}

# Checks what is depended on
deny:
    cargo deny --workspace check --hide-inclusion-graph bans licenses sources

# Builds programs and packages to give away, below target/dist
dist *options:
    cargo xtask dist {{options}}

# Builds what is rolled out, for this machine
release:
    cargo build --release --package ai-agent --package siem-server
