//! Any request to the API of a controller that is shutting down: an answer, no panic and no wait.
//!
//! The input is a method, a path with its query and a body, a line each but for the body.
#![no_main]

use axum::body::Body;
use axum::http::Request;
use containerctl::api::{Api, router};
use containerctl::control::Handle;
use libfuzzer_sys::fuzz_target;
use std::path::PathBuf;
use std::time::Duration;
use tower::ServiceExt;

fuzz_target!(|input: (&str, &str, &[u8])| {
    let (method, path, body) = input;
    let path = format!("/v1/{}", path.trim_start_matches('/'));
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    let Ok(request) = request.body(Body::from(body.to_vec())) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        // Nobody takes commands: whoever asks for more than a snapshot is told that the controller is going.
        let api = Api::new(Handle::closed(), PathBuf::from("/nonexistent"));
        let answer = tokio::time::timeout(Duration::from_secs(5), router(api).oneshot(request)).await;
        // A wait for a state that never comes is the one thing that may take its time.
        if let Ok(Ok(answer)) = answer {
            assert!(answer.status().as_u16() >= 200);
        }
    });
});
