//! What the agent is told: layers of TOML, the environment and the server, made into typed
//! settings. Every error names the layer, the key, and what would be right.

mod secret;

pub use secret::{MASK, Secret, SecretError, is_secret_key};
