# The everyday commands. `just` alone lists them.

_list:
    @just --list --unsorted

# Run the agent and a receiver on your sessions, or on samples
demo *options:
    cargo xtask demo {{options}}

# Run all checks, as CI does
test *options:
    cargo xtask test {{options}}

# Compare the agent with syslog-ng: `just bench --full` takes half an hour
bench *options:
    cargo xtask bench {{options}}

# Run the tests whose names contain a word
only word:
    cargo nextest run --workspace {{word}}

# Format the code
fmt:
    cargo fmt --all

# Run the lints
lint:
    cargo clippy --workspace --all-targets -- -D warnings

# Open the documentation
doc:
    cargo doc --no-deps --workspace --open

# Write a filter from a template: `just new-filter drop-drafts`
new-filter name:
    cargo xtask new filter {{name}}

# Write an enricher from a template
new-enricher name:
    cargo xtask new enricher {{name}}

# Write a source from a template
new-source name:
    cargo xtask new source {{name}}

# Write a sink from a template
new-sink name:
    cargo xtask new sink {{name}}

# List the stages, or show one: `just stages show meta`
stages *arguments:
    cargo run --quiet --package ai-agent -- stages {{arguments}}

# Show what would be shipped from this machine; changes nothing
dry-run *options:
    cargo run --quiet --package ai-agent -- run --test {{options}}

# Run a receiver: `just receiver --listen 127.0.0.1:8080`, secrets in the environment
receiver *options:
    cargo run --quiet --package siem-server --bin demo-server -- {{options}}

# Install the audit rules that log every call of docker: docs/audit.md
audit-install *options:
    cargo run --quiet --package ai-agent -- audit install {{options}}

# Show and follow who stopped containers
audit-tail *options:
    cargo run --quiet --package ai-agent -- audit tail {{options}}

# Remove the audit rules
audit-uninstall *options:
    cargo run --quiet --package ai-agent -- audit uninstall {{options}}

# Check the dependencies
deny:
    cargo deny --workspace check --hide-inclusion-graph bans licenses sources

# Build programs and packages in target/dist
dist *options:
    cargo xtask dist {{options}}

# Build the programs to roll out, for this machine
release:
    cargo build --release --package ai-agent --package siem-server
