//! Tests malicious clients of the control socket: nothing that a client sends, or fails to send, delays the daemon, a
//! packet or another client.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use netns_lab::daemon::{Daemon, binary};
use netns_lab::{Lab, PROMPT_TIMEOUT, slowness};

/// The longest wait of a client in these tests: far below the server's own timeouts.
const SOON: Duration = Duration::from_secs(20);

fn connect(lab: &Lab) -> UnixStream {
    let stream = UnixStream::connect(lab.path("socket")).unwrap();
    stream.set_read_timeout(Some(SOON * slowness())).unwrap();
    stream.set_write_timeout(Some(SOON * slowness())).unwrap();
    stream
}

/// Sends bytes, as far as the server accepts them, and reads lines until the end.
fn exchange(lab: &Lab, bytes: &[u8]) -> Vec<serde_json::Value> {
    let mut stream = connect(lab);
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let lines = BufReader::new(stream).lines().map_while(Result::ok);
    lines.map(|line| serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// Asserts that the daemon answers quickly.
fn assert_responsive(lab: &Lab) {
    let begin = Instant::now();
    assert_eq!(lab.ask(&["status"])["running"], true);
    assert!(begin.elapsed() < SOON * slowness(), "{:?}", begin.elapsed());
}

#[test]
fn invalid_requests_get_an_error_reply() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start_configured(&lab, "expire = \"1h\"\n", &[]);
    let deep = "[".repeat(60_000);
    let lines: [&[u8]; 8] = [
        b"hello\n",
        b"{}\n",
        b"{\"command\":\"block\"}\n",
        b"{\"command\":\"block\",\"target\":\"192.0.2.7\",\"forse\":true}\n",
        b"{\"command\":\"block\",\"target\":\"0.0.0.0/0\"}\n",
        b"\x00\xff\xfe\n",
        b"\n",
        &[deep.as_bytes(), b"\n"].concat(),
    ];
    for line in lines {
        let replies = exchange(&lab, line);
        let [reply] = &replies[..] else { panic!("{replies:?} to {:?}", String::from_utf8_lossy(line)) };
        assert_eq!((&reply["ok"], &reply["kind"]), (&false.into(), &"usage".into()), "{reply}");
    }
    // Invalid and valid requests alternate on one connection.
    let replies = exchange(&lab, b"nonsense\n{\"command\":\"status\"}\n{\"command\":\"explain\",\"address\":\"x\"}\n");
    assert_eq!(replies.iter().map(|reply| reply["ok"].clone()).collect::<Vec<_>>(), [false, true, false]);
    let replies = exchange(&lab, &vec![b'x'; 100 << 10]);
    assert!(replies.len() == 1 && replies[0]["error"].as_str().unwrap().contains("65536 bytes"), "{replies:?}");
    assert_responsive(&lab);
    lab.provoke_ban("attacker");
    assert_eq!(lab.banned().len(), 1);
    daemon.stop();
}

#[test]
fn forty_clients_are_served_or_refused() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start_configured(&lab, "expire = \"1h\"\n", &[]);
    // Slow clients that never complete a line.
    let mut slow: Vec<_> = (0..10).map(|_| connect(&lab)).collect();
    for byte in b"{\"comm" {
        slow.iter_mut().for_each(|stream| stream.write_all(&[*byte]).unwrap());
        assert_responsive(&lab);
    }
    // Clients that send requests and never read.
    let mut deaf: Vec<_> = (0..10).map(|_| connect(&lab)).collect();
    deaf.iter_mut().for_each(|stream| stream.write_all(b"{\"command\":\"status\"}\n").unwrap());
    assert_responsive(&lab);

    let mut all: Vec<_> = (0..20).map(|_| connect(&lab)).collect();
    let answers: Vec<String> = all
        .iter_mut()
        .map(|stream| {
            let _ = stream.write_all(b"{\"command\":\"status\"}\n");
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).unwrap();
            line
        })
        .collect();
    let refused = answers.iter().filter(|line| line.contains("clients are already connected")).count();
    let served = answers.iter().filter(|line| line.contains("\"running\":true")).count();
    assert_eq!((served, refused), (12, 8), "{answers:?}");
    let output = lab.operate(&["status"]);
    assert!(output.code == Some(1) && output.err.contains("32 clients are already connected"), "{output:?}");
    lab.provoke_ban("attacker");
    drop((slow, deaf, all));
    let well = netns_lab::within(SOON, || (lab.operate(&["status"]).code == Some(0)).then_some(()));
    assert!(well.is_some(), "closed connections make room");
    let (ended, took) = daemon.end_by(rustix::process::Signal::TERM);
    assert!(ended.status.success() && took < PROMPT_TIMEOUT * slowness(), "{took:?} {ended:?}");
    assert!(!lab.path("socket").exists());
}

#[test]
fn disconnected_client_is_forgotten() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start_configured(&lab, "expire = \"1h\"\n", &[]);
    for _ in 0..100 {
        let mut stream = connect(&lab);
        let _ = stream.write_all(b"{\"command\":\"status\"}\n{\"command\":\"watch\"}\n{\"comm");
    }
    let well = netns_lab::within(SOON, || (lab.operate(&["status"]).code == Some(0)).then_some(()));
    assert!(well.is_some(), "closed connections make room");
    let mut watchers: Vec<_> = (0..5).map(|_| connect(&lab)).collect();
    for stream in &mut watchers {
        stream.write_all(b"{\"command\":\"watch\"}\n").unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"{\"ok\":true}\n");
    }
    lab.provoke_ban("attacker");
    drop(watchers);
    assert_responsive(&lab);
    daemon.stop();
}

#[test]
fn unprivileged_user_may_only_read() {
    if !netns_lab::has_other_users() {
        return;
    }
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start_configured(&lab, "expire = \"1h\"\n", &[]);
    let mode = |name: &str, mode| std::fs::set_permissions(lab.path(name), PermissionsExt::from_mode(mode)).unwrap();
    let found = std::fs::metadata(lab.path("socket")).unwrap().permissions().mode();
    assert_eq!(found & 0o777, 0o660);
    mode("", 0o711);
    lab.write("program", "");
    // Only this process sees the program at a path where that user may run it.
    let as_nobody = |words: &[&str]| {
        let script =
            "mount --bind \"$1\" \"$2\"; shift; exec setpriv --reuid=65534 --regid=65534 --clear-groups \"$@\"";
        let mut command = lab.command("victim", "sh");
        command.args(["-c", script, "sh"]).arg(binary()).arg(lab.path("program"));
        let output = command.args(words).arg("--socket").arg(lab.path("socket")).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, error) = as_nobody(&["status"]);
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("this user has no access to"), "{error}");

    // An administrator gives a group access.
    chown(lab.path("socket"), None, Some(65_534)).unwrap();
    for words in [&["status"][..], &["explain", "192.0.2.7"]] {
        assert_eq!(as_nobody(words).0, Some(0), "{words:?}");
    }
    lab.provoke_ban("attacker");
    let attacker = lab.v4("attacker").to_string();
    for words in [
        &["block", "192.0.2.7"][..],
        &["unblock", "--all"],
        &["unblock", &attacker],
        &["allow", &attacker],
        &["confirm"],
        &["reload"],
    ] {
        let (code, error) = as_nobody(words);
        assert_eq!(code, Some(1), "{words:?}: {error}");
        assert!(error.contains("only root and the daemon's user"), "{words:?}: {error}");
    }
    assert_eq!(lab.banned(), [std::net::IpAddr::from(lab.v4("attacker"))]);
    daemon.stop();
}
