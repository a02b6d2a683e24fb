//! containerctl: YAML files in a folder become confined processes on one Linux host.

pub mod api;
pub mod cli;
pub mod control;
pub mod host;
pub mod init;
pub mod manifest;
pub mod model;
pub mod place;
pub mod plan;
pub mod store;
