//! containerctl: YAML files in a folder become confined processes on one Linux host.

pub mod host;
pub mod init;
pub mod manifest;
pub mod model;
pub mod place;
pub mod plan;
pub mod store;
