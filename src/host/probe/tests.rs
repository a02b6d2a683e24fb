//! Servers of every temper, asked over loopback.

use super::command::told;
use super::*;
use std::net::TcpListener;
use std::sync::mpsc;

const SECOND: Duration = Duration::from_secs(1);

/// A server on a port of its own that does this with the first connection.
fn server(listener: &str, serve: impl FnOnce(TcpStream) + Send + 'static) -> u16 {
    let listener = TcpListener::bind(listener).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || serve(listener.accept().unwrap().0));
    port
}

fn ask(port: u16, path: &str, host: Option<&str>, time: Duration) -> String {
    let deadline = Instant::now() + time;
    match dial(port, deadline).and_then(|mut stream| get(&mut stream, port, path, host, deadline)) {
        Ok(()) => "good".to_owned(),
        Err(Refusal::Bad(why)) => why,
        Err(Refusal::Late) => "late".to_owned(),
        Err(Refusal::Unasked(why)) => format!("unasked: {why}"),
    }
}

/// What is said of a server that answers with this text and hangs up.
fn check(answer: &'static str) -> String {
    let port = server("127.0.0.1:0", move |mut stream| {
        let mut request = [0; 1024];
        let _ = stream.read(&mut request).unwrap();
        stream.write_all(answer.as_bytes()).unwrap();
    });
    ask(port, "/", None, 10 * SECOND)
}

#[test]
fn the_first_answer_decides() {
    assert_eq!(check("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), "good");
    assert_eq!(check("HTTP/1.0 204 Fine\r\n\r\n"), "good");
    assert_eq!(check("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n"), "good");
    assert_eq!(check("HTTP/1.1 400 No\r\n\r\n"), "answered 400");
    assert_eq!(check("HTTP/1.1 503 Service Unavailable\r\n\r\n"), "answered 503");
    assert_eq!(check("SSH-2.0-OpenSSH_9.2\r\n"), "the answer is no HTTP: invalid HTTP version");
    assert_eq!(check("HTTP/1.1 200 OK\r\nA: b\r\n"), "the connection was closed before an answer");
    assert_eq!(check(""), "the connection was closed before an answer");
}

#[test]
fn it_asks_for_the_path_under_the_name() {
    let (sender, receiver) = mpsc::channel();
    let port = server("127.0.0.1:0", move |mut stream| {
        let mut request = [0; 1024];
        let len = stream.read(&mut request).unwrap();
        sender.send(String::from_utf8_lossy(&request[..len]).into_owned()).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
    });
    assert_eq!(ask(port, "/health?full=1", Some("example.org"), 10 * SECOND), "good");
    let request = receiver.recv().unwrap();
    assert!(request.starts_with("GET /health?full=1 HTTP/1.1\r\nHost: example.org\r\n"), "{request}");
    assert!(request.ends_with("Connection: close\r\n\r\n"), "{request}");
}

#[test]
fn whoever_dribbles_or_never_ends_is_bounded() {
    let begun = Instant::now();
    let port = server("127.0.0.1:0", |mut stream| {
        for byte in b"HTTP/1.1 200 OK\r\nA: b".iter().cycle() {
            if stream.write_all(&[*byte]).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    });
    assert_eq!(ask(port, "/", None, SECOND / 2), "late");
    let port = server("127.0.0.1:0", |mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
        while stream.write_all(b"A: b\r\n").is_ok() {}
    });
    let endless = ask(port, "/", None, 10 * SECOND);
    assert!(endless.starts_with("the answer"), "{endless}");
    // A body without end does not matter: the head has decided.
    let port = server("127.0.0.1:0", |mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        while stream.write_all(&[b'x'; 4096]).is_ok() {}
    });
    assert_eq!(ask(port, "/", None, 10 * SECOND), "good");
    // Nor does one that never comes.
    let port = server("127.0.0.1:0", |mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
        thread::sleep(60 * SECOND);
    });
    assert_eq!(ask(port, "/", None, 10 * SECOND), "good");
    assert!(begun.elapsed() < 10 * SECOND, "{:?}", begun.elapsed());
}

#[test]
fn nobody_there_is_a_refusal_and_either_loopback_will_do() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    assert_eq!(ask(port, "/", None, SECOND), "connection refused");
    let Ok(listener) = TcpListener::bind("[::1]:0") else {
        println!("this host has no IPv6: only one loopback was asked");
        return;
    };
    assert!(dial(listener.local_addr().unwrap().port(), Instant::now() + 10 * SECOND).is_ok());
}

#[test]
fn what_a_command_printed_fits_on_a_line() {
    assert_eq!(told(b""), "");
    assert_eq!(told(b"no such\n\n table \x1b[31m\xff\n"), ": no such table \\u{1b}[31m\u{fffd}");
}
