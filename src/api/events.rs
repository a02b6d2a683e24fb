//! What has happened, as lines of JSON, and on as it happens.

use super::{Api, Failure};
use crate::control::journal::Journal;
use crate::model::event::Event;
use crate::model::name::Name;
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use http_body_util::channel::{Channel, Sender};
use serde::Deserialize;
use std::io;
use std::sync::Arc;

/// Pieces ahead of a slow reader; the loop never waits for one, and what a reader misses because the journal is bounded it misses.
const PIECES_MAX: usize = 1;

#[derive(Clone, Debug, Default, Deserialize)]
pub struct Asked {
    name: Option<String>,
    /// Only what is behind this sequence number.
    #[serde(default)]
    after: u64,
    #[serde(default)]
    follow: bool,
}

pub async fn events(State(api): State<Api>, Query(asked): Query<Asked>) -> Response {
    let name = match asked.name.as_deref().map(str::parse::<Name>).transpose() {
        Ok(name) => name,
        Err(reason) => {
            let error = format!("no workload is called {}: its name {reason}", asked.name.unwrap_or_default());
            let help = "`containerctl ps` lists the names".to_owned();
            return (StatusCode::BAD_REQUEST, Json(Failure { error, help })).into_response();
        }
    };
    let (body, channel) = Channel::<Bytes, io::Error>::new(PIECES_MAX);
    tokio::spawn(send(Arc::clone(&api.handle.journal), asked.after, name, asked.follow, body));
    ([("content-type", "application/x-ndjson")], Body::new(channel)).into_response()
}

/// Sends what there is, and with `follow` what comes. Ends when the reader has gone or the journal has.
async fn send(
    journal: Arc<Journal>,
    mut after: u64,
    name: Option<Name>,
    follow: bool,
    mut body: Sender<Bytes, io::Error>,
) {
    let mut newest = journal.newest();
    loop {
        // Marked as seen before the events are taken: what comes in between wakes us again.
        let upto = *newest.borrow_and_update();
        let lines = lines(&journal.after(after, name.as_ref()));
        after = upto.max(after);
        if !lines.is_empty() && body.send_data(lines.into()).await.is_err() {
            return;
        }
        // A watch keeps its mark when it is dropped and asked again.
        if !follow || newest.changed().await.is_err() {
            return;
        }
    }
}

fn lines(events: &[Event]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for event in events {
        // Events of ours have JSON; a buffer in memory takes it.
        if serde_json::to_writer(&mut bytes, event).is_ok() {
            bytes.push(b'\n');
        }
    }
    bytes
}
