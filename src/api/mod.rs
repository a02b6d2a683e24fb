//! HTTP and JSON over a Unix socket: what the command line asks a running controller.
//!
//! Whoever may open the socket may use it: root, and members of the group `containerctl` where there is one. Handlers only read snapshots
//! and files or pass commands to the loop; they decide nothing.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/health` | [`Health`] |
//! | `GET /v1/workloads` | a list of [`Status`] |
//! | `GET /v1/workloads/NAME` | a [`Status`], 404 if there is none |
//! | `GET /v1/workloads/NAME/explain` | an [`Explanation`](crate::control::explain::Explanation): why it is as it is |
//! | `GET /v1/workloads/NAME/logs?tail=N&sinceMs=T&previous=true&follow=true` | the log's lines as they are on disk, oldest first |
//! | `GET /v1/events?name=NAME&after=N&follow=true` | [`Event`](crate::model::event::Event)s behind sequence number N, a line of JSON each, oldest first |
//! | `POST /v1/approve` | consents to the deletions that wait for it: a list of names |
//! | `GET /v1/rebalance` | a [`Report`](crate::control::balance::Report): what the rebalancer sees, proposes and has done |
//! | `GET /v1/plan` | a [`Preview`] of the next pass |
//! | `POST /v1/plan` | a [`Preview`] for the [`Files`] in the body |
//! | `GET /v1/wait?for=ready&name=NAME&timeoutMs=N` | a [`Waited`], when it is so or the time is up |

pub mod events;
pub mod logs;
pub mod socket;

use crate::control::explain::explain;
use crate::control::lost::{LOG_LOST, sentence};
use crate::control::report::{Health, Preview, Snapshot};
use crate::control::{Command, Handle};
use crate::manifest::diagnostic::Diagnostic;
use crate::manifest::tree::Place;
use crate::manifest::{FILE_BYTES_MAX, Parsed, parse};
use crate::model::gpu::GpuStatus;
use crate::model::name::Name;
use crate::model::status::{Phase, Status};
use crate::model::time::Timestamp;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use logs::Ask;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::timeout;

/// The most bytes of a request: manifests to be planned, thirty of the largest size or a few thousand usual ones.
const BODY_BYTES_MAX: usize = 32 * FILE_BYTES_MAX;
/// The longest a request may wait for a state to be reached.
const WAIT_MAX: Duration = Duration::from_hours(24);

/// Logs read at the same time. Each takes a thread for as long as somebody follows it.
const READERS_MAX: usize = 32;

/// Where a handler finds things.
#[derive(Clone)]
pub struct Api {
    handle: Handle,
    /// The folder of all log folders.
    logs: PathBuf,
    readers: Arc<Semaphore>,
}

/// Manifests to plan for, by path.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Files {
    pub files: BTreeMap<String, String>,
    /// Files that are there but cannot be sent, and why.
    pub unreadable: BTreeMap<String, String>,
}

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Goal {
    /// Its command runs.
    Running,
    /// It runs and can serve.
    Ready,
    /// It has ended well.
    Completed,
    /// Everything is as the manifests say.
    Converged,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wait {
    #[serde(rename = "for")]
    pub goal: Goal,
    pub name: Option<String>,
    pub timeout_ms: u64,
}

/// How a wait ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waited {
    pub reached: bool,
    /// What is missing, if it was not reached.
    pub missing: Vec<String>,
}

/// An answer that is no success.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    pub error: String,
    pub help: String,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LogQuery {
    tail: Option<usize>,
    /// Milliseconds since 1970.
    since_ms: Option<u64>,
    /// Of the run that has ended last.
    #[serde(default)]
    previous: bool,
    #[serde(default)]
    follow: bool,
}

/// The routes.
pub fn router(api: Api) -> Router {
    Router::new()
        .route("/v1/health", get(health))
        .route("/v1/workloads", get(workloads))
        .route("/v1/workloads/{name}", get(workload))
        .route("/v1/workloads/{name}/explain", get(explanation))
        .route("/v1/workloads/{name}/logs", get(log))
        .route("/v1/gpus", get(gpus))
        .route("/v1/events", get(events::events))
        .route("/v1/approve", post(approve))
        .route("/v1/rebalance", get(rebalance))
        .route("/v1/plan", get(plan).post(plan_for))
        .route("/v1/wait", get(wait))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(api)
}

async fn health(State(api): State<Api>) -> Json<Health> {
    Json(api.snapshot().health())
}

async fn workloads(State(api): State<Api>) -> Json<Vec<Status>> {
    let snapshot = api.snapshot();
    Json(snapshot.statuses.values().map(|status| snapshot.with_usage(status)).collect())
}

async fn gpus(State(api): State<Api>) -> Json<Vec<GpuStatus>> {
    Json(api.snapshot().gpus.clone())
}

async fn rebalance(State(api): State<Api>) -> Response {
    let (reply, answer) = oneshot::channel();
    let sent = api.handle.commands.send(Command::Rebalance { reply }).await;
    match (sent, answer.await) {
        (Ok(()), Ok(report)) => Json(report).into_response(),
        _ => shutting_down(),
    }
}

async fn approve(State(api): State<Api>) -> Response {
    let (reply, answer) = oneshot::channel();
    let sent = api.handle.commands.send(Command::Approve { reply }).await;
    match (sent, answer.await) {
        (Ok(()), Ok(Ok(names))) => Json(names).into_response(),
        (Ok(()), Ok(Err(message))) => {
            let (error, help) = message.split_once("; help: ").unwrap_or((&message, "see the controller's log"));
            let failure = Failure { error: error.to_owned(), help: help.to_owned() };
            (StatusCode::SERVICE_UNAVAILABLE, Json(failure)).into_response()
        }
        _ => shutting_down(),
    }
}

async fn workload(State(api): State<Api>, Path(name): Path<String>) -> Response {
    match api.find(&name) {
        Ok(status) => {
            let probes = api.handle.board.report(&status.name);
            Json(Status { probes, ..api.snapshot().with_usage(&status) }).into_response()
        }
        Err(failure) => (StatusCode::NOT_FOUND, Json(failure)).into_response(),
    }
}

async fn explanation(State(api): State<Api>, Path(name): Path<String>) -> Response {
    match api.find(&name) {
        Ok(status) => Json(explain(&status, &api.handle.journal.after(0, Some(&status.name)))).into_response(),
        Err(failure) => (StatusCode::NOT_FOUND, Json(failure)).into_response(),
    }
}

async fn log(State(api): State<Api>, Path(name): Path<String>, Query(query): Query<LogQuery>) -> Response {
    let status = match api.find(&name) {
        Ok(status) => status,
        Err(failure) => return (StatusCode::NOT_FOUND, Json(failure)).into_response(),
    };
    let mut ask = Ask { tail: query.tail, since: query.since_ms.map(Timestamp), until: None, follow: query.follow };
    if query.previous {
        let Some(exit) = &status.last_exit else {
            let error = format!("no run of {name} has ended yet");
            let help = "without --previous the log of the run under way is shown".to_owned();
            return (StatusCode::NOT_FOUND, Json(Failure { error, help })).into_response();
        };
        (ask.since, ask.until) = (exit.started, Some(exit.at));
    }
    let folder = api.logs.join(status.name.as_str());
    let told = status.conditions.iter().any(|condition| condition.reason == LOG_LOST);
    // The next resync tells of it; whoever asks before is not to be shown nothing.
    if told || status.phase == Phase::Running && !folder.is_dir() {
        let help = "it is made anew at its next start: end its command, or edit its manifest".to_owned();
        return (StatusCode::GONE, Json(Failure { error: sentence(&folder), help })).into_response();
    }
    let Ok(reader) = Arc::clone(&api.readers).try_acquire_owned() else {
        let error = format!("{READERS_MAX} logs are being read already");
        let help = "end another `logs -f`, or read the files in the state folder".to_owned();
        return (StatusCode::SERVICE_UNAVAILABLE, Json(Failure { error, help })).into_response();
    };
    Body::new(logs::stream(folder, ask, reader)).into_response()
}

async fn plan(State(api): State<Api>) -> Response {
    api.look().await;
    api.ask_for_plan(None).await
}

async fn plan_for(State(api): State<Api>, Json(Files { files, unreadable }): Json<Files>) -> Response {
    // Away from the loop: exits and probes do not wait for thousands of files to be parsed.
    let parsed = tokio::task::spawn_blocking(move || {
        let read = files.into_iter().map(|(path, text)| (path.clone(), Arc::new(parse(&path, text.as_bytes()))));
        read.collect::<Vec<_>>()
    });
    let Ok(read) = parsed.await else { return shutting_down() };
    let unread = unreadable.into_iter().map(|(path, why)| {
        let found = Diagnostic::error(
            &path,
            Place { line: 1, column: 1 },
            why,
            "mend the file; `containerctl validate` checks it",
        );
        (path, Arc::new(Parsed::refused(found)))
    });
    api.ask_for_plan(Some(read.into_iter().chain(unread).collect())).await
}

async fn wait(State(api): State<Api>, Query(wait): Query<Wait>) -> Response {
    if wait.name.is_none() != (wait.goal == Goal::Converged) {
        let error = "a name goes with running, ready and completed, and with nothing else".to_owned();
        let help = "wait NAME --for ready, or wait --for converged".to_owned();
        return (StatusCode::BAD_REQUEST, Json(Failure { error, help })).into_response();
    }
    let limit = Duration::from_millis(wait.timeout_ms).min(WAIT_MAX);
    let mut snapshots = api.handle.snapshots.clone();
    let reached = timeout(limit, async {
        // What was copied here a moment ago counts.
        api.look().await;
        // The sender lives as long as the loop; if it ends, nothing is reached any more.
        snapshots.wait_for(|snapshot| missing(snapshot, &wait).is_empty()).await.is_ok()
    });
    let reached = reached.await.unwrap_or(false);
    let missing = if reached { Vec::new() } else { missing(&api.snapshot(), &wait) };
    Json(Waited { reached, missing }).into_response()
}

/// What keeps a goal from being reached.
fn missing(snapshot: &Snapshot, wait: &Wait) -> Vec<String> {
    let Some(name) = &wait.name else { return snapshot.unsettled.clone() };
    let status = name.parse::<Name>().ok().and_then(|name| snapshot.statuses.get(&name).cloned());
    let Some(status) = status else { return vec![format!("no workload is called {name}")] };
    let current = status.observed_generation == status.generation;
    let reached = match wait.goal {
        Goal::Running => status.phase == Phase::Running && current,
        Goal::Ready => status.ready && current,
        Goal::Completed => status.phase == Phase::Completed,
        Goal::Converged => snapshot.unsettled.is_empty(),
    };
    if reached {
        return Vec::new();
    }
    let why: Vec<&str> = status
        .conditions
        .iter()
        .filter(|condition| condition.status == (condition.kind == crate::model::status::ConditionKind::Degraded))
        .map(|condition| condition.message.as_str())
        .collect();
    vec![format!("{name} is {}: {}", status.phase, why.join("; "))]
}

impl Api {
    pub fn new(handle: Handle, logs: PathBuf) -> Api {
        Api { handle, logs, readers: Arc::new(Semaphore::new(READERS_MAX)) }
    }

    /// What is told, as it changes.
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.handle.snapshots.clone()
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.handle.snapshots.borrow())
    }

    fn find(&self, name: &str) -> Result<Arc<Status>, Failure> {
        let snapshot = self.snapshot();
        let found = name.parse::<Name>().ok().and_then(|name| snapshot.statuses.get(&name).cloned());
        found.ok_or_else(|| {
            let names: Vec<&str> = snapshot.statuses.keys().map(Name::as_str).collect();
            let help = match names.len() {
                0 => "no workload is known yet; drop a manifest into the folder".to_owned(),
                _ => format!("known: {}", names.join(", ")),
            };
            Failure { error: format!("no workload is called {name}"), help }
        })
    }

    /// Has the folder looked at, and returns after the pass that follows.
    async fn look(&self) {
        let (done, looked) = oneshot::channel();
        if self.handle.commands.send(Command::Look { done }).await.is_ok() {
            // The loop ended if this fails; the answer is then as good as it gets.
            let _ = looked.await;
        }
    }

    async fn ask_for_plan(&self, files: Option<BTreeMap<String, Arc<Parsed>>>) -> Response {
        let (reply, answer) = oneshot::channel::<Preview>();
        let sent = self.handle.commands.send(Command::Plan { files, reply }).await;
        match (sent, answer.await) {
            (Ok(()), Ok(preview)) => Json(preview).into_response(),
            _ => shutting_down(),
        }
    }
}

fn shutting_down() -> Response {
    let failure = Failure {
        error: "the controller is shutting down".to_owned(),
        help: "try again once it has been started anew".to_owned(),
    };
    (StatusCode::SERVICE_UNAVAILABLE, Json(failure)).into_response()
}
