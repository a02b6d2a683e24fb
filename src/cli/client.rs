//! Asking the controller: one HTTP request over its socket.

use super::ClientArgs;
use crate::api::Failure;
use anyhow::{Context, anyhow, bail};
use axum::body::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::path::Path;
use tokio::net::UnixStream;

/// Runs a conversation with the controller.
pub fn talk<T>(conversation: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the client")?;
    runtime.block_on(conversation)
}

/// Asks for a value.
pub async fn get<T: DeserializeOwned>(args: &ClientArgs, path: &str) -> anyhow::Result<T> {
    let body = send(args, Method::GET, path, Vec::new()).await?.into_body();
    decode(body).await
}

/// Sends a value and takes one back.
pub async fn post<S: Serialize, T: DeserializeOwned>(args: &ClientArgs, path: &str, value: &S) -> anyhow::Result<T> {
    let body = serde_json::to_vec(value).context("cannot encode the request")?;
    decode(send(args, Method::POST, path, body).await?.into_body()).await
}

async fn decode<T: DeserializeOwned>(body: Incoming) -> anyhow::Result<T> {
    let bytes = body.collect().await.context("the controller broke off its answer")?.to_bytes();
    serde_json::from_slice(&bytes).context("cannot understand the controller's answer; is it of another version?")
}

/// Sends a request; an answer that is no success becomes an error with the controller's words.
pub async fn send(args: &ClientArgs, method: Method, path: &str, body: Vec<u8>) -> anyhow::Result<Response<Incoming>> {
    let stream = UnixStream::connect(&args.socket).await.map_err(|error| unreachable(&args.socket, &error))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.context("cannot talk to the controller")?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "containerctl")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .context("cannot make the request")?;
    let response = sender.send_request(request).await.context("the controller did not answer")?;
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status();
    let bytes = response.into_body().collect().await.context("the controller broke off its answer")?.to_bytes();
    refused(status, &bytes)
}

fn refused<T>(status: StatusCode, bytes: &[u8]) -> anyhow::Result<T> {
    match serde_json::from_slice::<Failure>(bytes) {
        Ok(Failure { error, help }) => bail!("{error}\n  help: {help}"),
        Err(_) => bail!("the controller answers {status}: {}", String::from_utf8_lossy(bytes)),
    }
}

fn unreachable(socket: &Path, error: &io::Error) -> anyhow::Error {
    let help = match error.kind() {
        io::ErrorKind::PermissionDenied => "become root, or a member of the group `containerctl`",
        _ => "start it with `containerctl controller`, or name its socket with --socket",
    };
    anyhow!("no controller answers at {}: {error}\n  help: {help}", socket.display())
}

/// A path segment or query value, percent-encoded.
pub fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_change_the_request() {
        assert_eq!(encode("web-1.a_b"), "web-1.a_b");
        assert_eq!(encode("../x?y=ä"), "..%2Fx%3Fy%3D%C3%A4");
    }
}
