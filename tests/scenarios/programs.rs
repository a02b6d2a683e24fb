//! Real programs of Debian's in the default box: each of examples/ as it is, from its first request to its clean end, on the host's root
//! file system and on one of their own.
//!
//! The controller gets a network and a `/srv` of its own, so that what the examples name, ports and folders, is free and is gone
//! afterwards. `tests/programs/install` puts the programs on the machine.

use super::kernel;
use super::world::{World, eventually, in_repository};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

/// Longer than any of these programs takes to answer; a request that gets none fails instead of hanging.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// A host with an empty `/srv` and a network of its own.
struct Site {
    world: World,
}

impl Site {
    fn new(programs: &[&str]) -> Site {
        let missing: Vec<_> = programs.iter().filter(|program| !Path::new(program).exists()).collect();
        assert!(missing.is_empty(), "not installed: {missing:?}\n  help: as root, tests/programs/install");
        let mut world = World::new();
        fs::create_dir(world.path("srv")).unwrap();
        let inside = format!("ip link set lo up && mount --bind {} /srv && exec \"$@\"", world.path("srv").display());
        world.start_after(&format!("exec unshare --mount --net sh -c '{inside}' sh \"$@\""));
        Site { world }
    }

    /// A folder below `/srv` that only its owner enters.
    fn folder(&self, name: &str, id: u32) -> PathBuf {
        let path = self.world.path("srv").join(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
        chown(&path, Some(id), Some(id)).unwrap();
        path
    }

    /// What a workload has logged, to either stream.
    fn said(&self, name: &str) -> String {
        let logs = self.world.ctl(&["logs", name]);
        assert_eq!(logs.code, 0, "{logs:?}");
        format!("{}{}", logs.out, logs.err)
    }

    /// A connection to a port of the controller's network, which is that of its workloads.
    fn connect(&self, port: u16) -> Option<TcpStream> {
        let network = File::open(format!("/proc/{}/ns/net", self.world.controller_pid())).unwrap();
        // A socket stays in the network it was made in, and only that thread enters it.
        let connect = move || {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            TcpStream::connect(("127.0.0.1", port)).ok()
        };
        thread::spawn(connect).join().unwrap()
    }
}

/// One example: its text as it is now, and how it is told that a workload of it ended well.
struct Example<'a> {
    site: &'a Site,
    file: String,
    text: String,
    name: &'a str,
    farewell: &'a str,
}

impl<'a> Example<'a> {
    /// As it is, or with a root file system of its own.
    fn put(site: &'a Site, name: &'a str, path: &Path, farewell: &'a str, root: Option<&Path>) -> Example<'a> {
        let file = format!("{name}.yaml");
        let mut text = fs::read_to_string(path).unwrap();
        if let Some(root) = root {
            text = text.replace("\ncommand:", &format!("\nrootfs: {}\ncommand:", root.display()));
            assert!(text.contains("rootfs: "), "{text}");
        }
        site.world.put(&file, &text);
        Example { site, file, text, name, farewell }
    }

    fn edit(&mut self, from: &str, to: &str) {
        assert_eq!(self.text.matches(from).count(), 1, "{from:?} in {}", self.file);
        self.text = self.text.replace(from, to);
        self.site.world.put(&self.file, &self.text);
    }

    /// Whether what runs sees the host's root file system, or another: told by the folder that is its `/usr`.
    fn is_on_host(&self) -> bool {
        let pid = self.site.world.wait_running(self.name);
        let folder = |path: &str| fs::metadata(path).map(|found| (found.dev(), found.ino())).unwrap();
        folder(&format!("/proc/{pid}/root/usr")) == folder("/usr")
    }

    /// Other limits for the same process. What answered before has to answer after, without connecting again.
    fn resize(&mut self, (from, to): (&str, &str), cpu_milli: u64, memory_bytes: u64) {
        let world = &self.site.world;
        let (pid, group) = (world.wait_running(self.name), world.group(self.name));
        let (began, processes) = (kernel::start_ticks(pid), kernel::processes(&group));
        assert_ne!((kernel::cpu_milli(&group), kernel::memory_bytes(&group)), (Some(cpu_milli), memory_bytes));
        self.edit(from, to);
        assert_eq!(world.wait_running(self.name), pid, "another process after a resize");
        let held = || (kernel::cpu_milli(&group), kernel::memory_bytes(&group));
        eventually("the new limits are held", || held() == (Some(cpu_milli), memory_bytes));
        assert_eq!(kernel::start_ticks(pid), began);
        let now = kernel::processes(&group);
        assert!(processes.is_subset(&now), "{processes:?} were there, {now:?} are");
    }

    /// Stops it by its manifest: it has to end by itself, say so in its own words, and leave nothing.
    fn suspend(&mut self) {
        let running = format!("name: {}\n", self.name);
        self.edit(&running, &format!("{running}suspend: true\n"));
        let world = &self.site.world;
        let status = world.wait_phase(self.name, "Suspended");
        let said = self.site.said(self.name);
        assert_eq!(status["lastExit"]["code"], 0, "{status:#}\n{said}");
        assert!(said.contains(self.farewell), "{said}");
        assert!(!world.log().contains("its grace period is over"), "{}", world.log());
        assert!(kernel::directories(&world.group(self.name)).is_empty());
    }

    fn resume(&mut self) {
        self.edit("suspend: true\n", "");
        self.site.world.wait_running(self.name);
    }
}

/// A session of psql's, one connection for as long as it lives.
struct Psql {
    child: std::process::Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Psql {
    fn open(socket: &Path) -> Psql {
        let mut psql = Command::new("timeout");
        psql.arg(ANSWER_WITHIN.as_secs().to_string()).arg("/usr/lib/postgresql/15/bin/psql");
        psql.args(["-U", "postgres", "-XqAt", "-v", "ON_ERROR_STOP=1", "-h"]).arg(socket);
        let mut child = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Psql { child, input, output }
    }

    /// The first line of the answer.
    fn ask(&mut self, query: &str) -> String {
        writeln!(self.input, "{query};").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Psql {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The folder of a small Debian, made by the first test that asks.
fn debian() -> PathBuf {
    let made = Command::new(in_repository("tests/programs/debian")).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    PathBuf::from(String::from_utf8(made.stdout).unwrap().trim_end())
}

#[test]
fn postgres_serves_through_a_resize_ends_cleanly_and_has_its_data_again() {
    check_postgres(None);
}

#[test]
fn postgres_does_the_same_on_a_debootstrapped_root() {
    check_postgres(Some(&debian()));
}

fn check_postgres(root: Option<&Path>) {
    let site = Site::new(&["/usr/lib/postgresql/15/bin/postgres"]);
    let socket = site.folder("postgres", 1);
    let farewell = "database system is shut down";
    let mut example = Example::put(&site, "postgres", &in_repository("examples/postgres.yaml"), farewell, root);
    site.world.wait_phase("postgres-init", "Completed");
    let serves = || {
        let mut ready = Command::new("/usr/lib/postgresql/15/bin/pg_isready");
        ready.args(["-q", "-h"]).arg(&socket).status().unwrap().success()
    };
    eventually("PostgreSQL serves", serves);
    let mut psql = Psql::open(&socket);
    assert_eq!(psql.ask("SELECT 6 * 7"), "42");
    assert_eq!(example.is_on_host(), root.is_none());
    assert_eq!(psql.ask("CREATE TABLE kept AS SELECT generate_series(1, 1000) n; SELECT sum(n) FROM kept"), "500500");
    let backend = psql.ask("SELECT pg_backend_pid()");
    example.resize(("cpu: 1\nmemory: 256Mi\n", "cpu: 700m\nmemory: 192Mi\n"), 700, 192 << 20);
    assert_eq!(psql.ask("SELECT pg_backend_pid()"), backend, "the connection has outlived the resize");
    // Sorts, shared memory of several processes, a write-ahead log: more than one system call that a box could refuse.
    let parallel = "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0";
    assert_eq!(psql.ask(&format!("{parallel}; VACUUM ANALYZE kept; CHECKPOINT; SELECT count(*) FROM kept")), "1000");
    example.suspend();
    example.resume();
    eventually("PostgreSQL serves again", serves);
    assert_eq!(Psql::open(&socket).ask("SELECT sum(n) FROM kept"), "500500");
    let said = site.said("postgres");
    assert!(!said.contains("was not properly shut down"), "{said}");
    assert_eq!(site.world.status("postgres-init")["restarts"], 0, "the cluster was made once");
}

/// A connection to Redis.
struct Redis(BufReader<UnixStream>);

impl Redis {
    fn open(socket: &Path) -> Option<Redis> {
        let stream = UnixStream::connect(socket).ok()?;
        stream.set_read_timeout(Some(ANSWER_WITHIN)).unwrap();
        Some(Redis(BufReader::new(stream)))
    }

    /// The answer to an inline command (Redis serialization protocol specification, "Inline commands").
    fn ask(&mut self, command: &str) -> String {
        write!(self.0.get_mut(), "{command}\r\n").unwrap();
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        if line.starts_with('$') && line != "$-1\r\n" {
            line.clear();
            self.0.read_line(&mut line).unwrap();
        }
        line.trim_end().to_owned()
    }
}

#[test]
fn redis_serves_through_a_resize_ends_cleanly_and_has_its_data_again() {
    check_redis(None);
}

#[test]
fn redis_does_the_same_on_a_debootstrapped_root() {
    check_redis(Some(&debian()));
}

fn check_redis(root: Option<&Path>) {
    let site = Site::new(&["/usr/bin/redis-server"]);
    let socket = site.folder("redis", 1).join("redis.sock");
    let path = in_repository("examples/redis.yaml");
    let mut example = Example::put(&site, "redis", &path, "ready to exit, bye bye", root);
    let serves = || Redis::open(&socket).is_some_and(|mut redis| redis.ask("PING") == "+PONG");
    eventually("Redis serves", serves);
    let mut redis = Redis::open(&socket).unwrap();
    assert_eq!(redis.ask("SET greeting hello"), "+OK");
    assert_eq!(example.is_on_host(), root.is_none());
    example.resize(("cpu: 500m\nmemory: 128Mi\n", "cpu: 300m\nmemory: 112Mi\n"), 300, 112 << 20);
    assert_eq!(redis.ask("GET greeting"), "hello");
    assert_eq!(redis.ask("INCR visits"), ":1");
    // It forks for this: a child in the same box that writes the same folder.
    assert_eq!(redis.ask("BGSAVE"), "+Background saving started");
    eventually("the snapshot is saved", || socket.with_file_name("dump.rdb").exists());
    example.suspend();
    example.resume();
    eventually("Redis serves again", serves);
    let mut redis = Redis::open(&socket).unwrap();
    assert_eq!((redis.ask("GET greeting").as_str(), redis.ask("INCR visits").as_str()), ("hello", ":2"));
}

/// Asks nginx for a path on a connection that is kept; the answer's body.
fn get(stream: &mut TcpStream, path: &str) -> Option<Vec<u8>> {
    stream.set_read_timeout(Some(ANSWER_WITHIN)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").ok()?;
    let mut answer = BufReader::new(stream);
    let (mut status, mut length) = (String::new(), 0);
    answer.read_line(&mut status).ok()?;
    loop {
        let mut line = String::new();
        answer.read_line(&mut line).ok()?;
        let line = line.trim_end().to_ascii_lowercase();
        length = line.strip_prefix("content-length: ").map_or(length, |text| text.parse().unwrap());
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    answer.read_exact(&mut body).ok()?;
    status.starts_with("HTTP/1.1 200").then_some(body)
}

#[test]
fn nginx_serves_through_a_resize_and_ends_cleanly() {
    check_nginx(None);
}

#[test]
fn nginx_does_the_same_on_a_debootstrapped_root() {
    check_nginx(Some(&debian()));
}

fn check_nginx(root: Option<&Path>) {
    let site = Site::new(&["/usr/sbin/nginx"]);
    let html = site.world.path("srv/nginx/html");
    fs::create_dir_all(&html).unwrap();
    fs::copy(in_repository("examples/nginx.conf"), html.with_file_name("nginx.conf")).unwrap();
    let page: Vec<u8> = (0..300_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    fs::write(html.join("page"), &page).unwrap();
    let path = in_repository("examples/nginx.yaml");
    let mut example = Example::put(&site, "nginx", &path, "exited with code 0", root);
    eventually("nginx serves", || site.connect(8080).is_some());
    let mut stream = site.connect(8080).unwrap();
    assert_eq!(example.is_on_host(), root.is_none());
    assert_eq!(get(&mut stream, "/page").as_ref(), Some(&page));
    example.resize(("cpu: 500m\nmemory: 64Mi\n", "cpu: 300m\nmemory: 48Mi\n"), 300, 48 << 20);
    assert_eq!(get(&mut stream, "/page").as_ref(), Some(&page), "on the same connection");
    assert_eq!(get(&mut stream, "/nothing"), None);
    // Answered requests are in the log, whose place is named as /dev/stdout.
    eventually("the requests are logged", || site.said("nginx").contains("\"GET /nothing HTTP/1.1\" 404"));
    drop(stream);
    example.suspend();
    assert!(site.said("nginx").contains("gracefully shutting down"));
    assert!(site.connect(8080).is_none());
    example.resume();
    eventually("nginx serves again", || {
        site.connect(8080).is_some_and(|mut stream| get(&mut stream, "/page").as_ref() == Some(&page))
    });
}
