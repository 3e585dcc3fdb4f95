//! Starts a Redis or Valkey server for one test, with users as `portsentry fleet acl` prints them. `FLEET_SERVER` names
//! another program than `redis-server`, for example `valkey-server`.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::daemon::binary;
use crate::{Namespace, eventually};

/// The only user with all rights.
pub const ADMIN: &str = "user admin on >admin ~* &* +@all";

/// A directory with a user per host, each with a password file.
pub struct Users {
    pub directory: tempfile::TempDir,
    lines: Vec<String>,
}

impl Users {
    /// Users for these hosts of the fleet `lab`, the operator, and [`ADMIN`].
    pub fn new(hosts: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("acl.toml"), "[fleet]\nname = \"lab\"\n").unwrap();
        let mut users = Self { directory, lines: vec!["user default off".to_owned(), ADMIN.to_owned()] };
        for host in hosts {
            users.add(host, &[host]);
        }
        users.add("operator", &["--operator"]);
        users
    }

    fn add(&mut self, user: &str, words: &[&str]) {
        let path = self.password_file(user);
        fs::write(&path, format!("password-of-{user}\n")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let mut command = Command::new(binary());
        command.args(["fleet", "acl", "--config"]).arg(self.directory.path().join("acl.toml"));
        let output = command.arg("--credentials").arg(&path).args(words).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.lines.push(String::from_utf8(output.stdout).unwrap().trim_end().to_owned());
    }

    pub fn password_file(&self, user: &str) -> PathBuf {
        self.directory.path().join(format!("{user}.password"))
    }
}

/// A running server; killed when dropped.
pub struct Engine {
    child: Child,
    users: Users,
    options: Vec<String>,
    network: Option<String>,
    socket: PathBuf,
}

impl Engine {
    /// Starts a server on its own socket.
    pub fn start(users: Users, options: &[&str]) -> Self {
        Self::start_in(None, users, options)
    }

    /// Starts a server in a network namespace.
    pub fn start_in(network: Option<&Namespace>, users: Users, options: &[&str]) -> Self {
        let network = network.map(|network| network.name().to_owned());
        let path = users.directory.path().join("users.acl");
        fs::write(&path, users.lines.join("\n") + "\n").unwrap();
        let socket = users.directory.path().join("engine.sock");
        let mut words: Vec<String> =
            ["--port", "0", "--save", "", "--appendonly", "no", "--daemonize", "no"].map(str::to_owned).into();
        for (option, value) in [("--unixsocket", &socket), ("--aclfile", &path)] {
            words.extend([option.to_owned(), value.to_str().unwrap().to_owned()]);
        }
        words.extend(["--dir".to_owned(), users.directory.path().to_str().unwrap().to_owned()]);
        words.extend(options.iter().map(|word| (*word).to_owned()));
        let child = spawn(network.as_deref(), &words);
        let engine = Self { child, users, options: words, network, socket };
        engine.await_answer();
        engine
    }

    fn await_answer(&self) {
        eventually("the server answers", || self.try_cli("admin", "admin", &["PING"]).contains("PONG"));
    }

    /// Kills the server, as a crash does.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again, empty.
    pub fn restart(&mut self) {
        self.child = spawn(self.network.as_deref(), &self.options);
        self.await_answer();
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn users(&self) -> &Users {
        &self.users
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The server's reply to a command of a user.
    pub fn cli(&self, user: &str, words: &[&str]) -> String {
        let password = if user == "admin" { "admin".to_owned() } else { format!("password-of-{user}") };
        self.try_cli(user, &password, words)
    }

    pub fn admin(&self, words: &[&str]) -> String {
        self.cli("admin", words)
    }

    fn try_cli(&self, user: &str, password: &str, words: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        command.arg("-s").arg(&self.socket).args(["--user", user, "--pass", password, "--no-auth-warning"]);
        let output = command.args(words).stdin(Stdio::null()).output().expect("redis-tools is installed");
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&text).trim_end().to_owned()
    }
}

fn spawn(network: Option<&str>, options: &[String]) -> Child {
    let inside = network.map_or_else(Vec::new, |name| vec!["ip", "netns", "exec", name]);
    let server = std::env::var("FLEET_SERVER").unwrap_or_else(|_| "redis-server".to_owned());
    let words = [&inside[..], &["setpriv", "--pdeathsig", "KILL", &server]].concat();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).args(options).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("the server is installed")
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
