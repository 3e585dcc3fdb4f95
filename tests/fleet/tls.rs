//! Tests TLS with the test's own certificate authority.

use std::path::Path;
use std::process::Command;

use netns_lab::Namespace;
use netns_lab::daemon::binary;
use netns_lab::fleet::{Engine, Member, Users};

/// Runs openssl in a directory.
fn openssl(directory: &Path, words: &str) {
    let output =
        Command::new("openssl").args(words.split(' ')).current_dir(directory).output().expect("openssl is installed");
    assert!(output.status.success(), "openssl {words}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Creates a certificate authority `NAME.pem`.
pub(crate) fn authority(directory: &Path, name: &str) {
    openssl(
        directory,
        &format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name} -keyout {name}.key -out {name}.pem"
        ),
    );
}

/// Creates a server certificate `server.crt` for these names, as `DNS:fleet.example,IP:192.0.2.1`.
pub(crate) fn certificate(directory: &Path, authority: &str, names: &str) {
    std::fs::write(directory.join("names"), format!("subjectAltName={names}\nbasicConstraints=CA:FALSE\n")).unwrap();
    openssl(
        directory,
        "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=fleet -keyout server.key -out server.csr",
    );
    openssl(
        directory,
        &format!(
            "x509 -req -in server.csr -CA {authority}.pem -CAkey {authority}.key -CAcreateserial -days 2 -extfile names -out server.crt"
        ),
    );
}

/// The options of a server with TLS.
pub(crate) fn options(directory: &Path) -> Vec<String> {
    let file = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let words = ["--tls-port", "6379", "--tls-auth-clients", "no", "--bind", "*", "--tls-cert-file"].map(str::to_owned);
    [&words[..], &[file("server.crt"), "--tls-key-file".to_owned(), file("server.key")]].concat()
}

#[test]
fn wrong_certificate_is_refused_and_named() {
    let users = Users::new(&["a", "b", "c"]);
    let directory = users.directory.path().to_owned();
    authority(&directory, "ca");
    authority(&directory, "stranger");
    certificate(&directory, "ca", "IP:127.0.0.1");
    let (options, host) = (options(&directory), Namespace::with_loopback());
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let engine = Engine::start_in(Some(&host), users, &options);
    let start = |name: &str, url: &str, ca: &str| {
        let lines = format!("url = {url:?}\nca_file = {:?}", directory.join(ca));
        let mut command = host.command(binary().to_str().unwrap());
        Member::start_with(name, &lines, &engine.users().password_file(name), &mut command)
    };
    let trusting = start("a", "rediss://127.0.0.1:6379", "ca.pem");
    trusting.await_scan();
    let mut deceived = start("b", "rediss://127.0.0.1:6379", "stranger.pem");
    deceived.eventually("the reason is logged", || deceived.log().contains("invalid peer certificate; UnknownIssuer"));
    let mut misled = start("c", "rediss://localhost:6379", "ca.pem");
    misled.eventually("the reason is logged", || misled.log().contains("certificate not valid for name"));
    assert!(
        deceived.is_running() && misled.is_running(),
        "both keep running, because the server may get another certificate"
    );
    assert_eq!(engine.admin(&["CLIENT", "LIST"]).matches("user=b").count(), 0, "no password was sent");
}
