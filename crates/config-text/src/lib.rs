//! Text of configuration files, for agent and receiver: TOML with the line of each value, so that an
//! error can name it, and values with units.

pub mod toml_text;
mod units;

pub use units::{Size, Time, WrongUnit};
