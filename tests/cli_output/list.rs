//! Tests `portsentry list`, which joins the ledger and the kernel's sets.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use portsentry::enforce::nft::{Nft, RulesetSpec};
use portsentry::engine::{Class, Grade};
use portsentry::ledger::{BanAuthor, BanRecord, DATABASE, Ledger};
use portsentry::types::{Backend, BanTarget, Expiry, Protocol};
use rusqlite::Connection;
use serde_json::Value;
use tempfile::TempDir;

use crate::stderr;
use netns_lab::Namespace;

const HOUR: u64 = 3_600;

fn target(text: &str) -> BanTarget {
    text.parse().unwrap()
}

fn ago(seconds: u64) -> SystemTime {
    SystemTime::now() - Duration::from_secs(seconds)
}

fn ban(text: &str, since: SystemTime, seconds: u64) -> BanRecord {
    BanRecord {
        class: Some(Class::Syn),
        grade: Some(Grade::Forgeable),
        ports: vec![(Protocol::Tcp, 23), (Protocol::Tcp, 8080)],
        probes: 7,
        ..BanRecord::wanted_by(
            BanAuthor::Detector,
            target(text),
            since,
            Expiry::After(Duration::from_secs(seconds)),
            Backend::Nft,
        )
    }
}

/// A ledger, and a network namespace with the kernel sets that it describes.
struct Host {
    state: TempDir,
    namespace: Namespace,
}

impl Host {
    fn with(bans: &[BanRecord]) -> Self {
        let host = Self { state: tempfile::tempdir().unwrap(), namespace: Namespace::new() };
        Ledger::open(&host.directory()).unwrap().0.record(bans).unwrap();
        host
    }

    fn directory(&self) -> PathBuf {
        self.state.path().join("portsentry")
    }

    /// Repeats the ledger's first ban for `bans` addresses from 10.0.0.1 on.
    fn multiply(&self, bans: u32) {
        let connection = Connection::open(self.directory().join(DATABASE)).unwrap();
        let mut names = connection.prepare("SELECT name FROM pragma_table_info('ban') WHERE name != 'id'").unwrap();
        let names: Vec<String> = names.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        let address = "'10.' || (n >> 16) || '.' || (n >> 8 & 255) || '.' || (n & 255)";
        let value =
            |name: &String| if name == "subject" || name == "source" { address.to_owned() } else { name.clone() };
        let (columns, values) = (names.join(", "), names.iter().map(value).collect::<Vec<_>>().join(", "));
        let all = format!(
            "WITH RECURSIVE series(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM series WHERE n < {bans})
            INSERT INTO ban ({columns}) SELECT {values} FROM series, ban WHERE ban.id = 1"
        );
        assert_eq!(connection.execute(&all, []).unwrap(), usize::try_from(bans).unwrap());
    }

    /// Adds these bans to the kernel.
    fn block(&self, bans: &[(&str, u64)]) {
        let span = |seconds: u64| Expiry::After(Duration::from_secs(seconds));
        let bans: Vec<_> = bans.iter().map(|(text, seconds)| (target(text), span(*seconds))).collect();
        self.namespace.inside(|| {
            let mut nft = Nft::open().unwrap();
            nft.install(&RulesetSpec::default()).unwrap();
            nft.block(&bans).unwrap();
        });
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.namespace.command(env!("CARGO_BIN_EXE_portsentry"));
        command.args(["list", "--state-dir"]).arg(self.directory()).args(arguments);
        command
    }

    /// The output without the first note, which says that no daemon runs.
    fn list(&self, arguments: &[&str]) -> Output {
        let mut output = self.command(arguments).output().unwrap();
        let text = stderr(&output);
        let more = text.strip_prefix("portsentry: portsentry is not running: ");
        output.stderr = more.map_or(text.as_str(), |more| more.split_once('\n').unwrap().1).into();
        let says_so = output.status.success() && !arguments.contains(&"--would-block");
        assert_eq!(more.is_some(), says_so, "no daemon runs, which changes the bans in force: {text}");
        output
    }

    fn text(&self, arguments: &[&str]) -> String {
        let output = self.list(arguments);
        assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        crate::json(&self.list(&[arguments, &["--json"]].concat()), 0)
    }
}

/// The targets in their order.
fn targets(list: &Value) -> Vec<&str> {
    list["bans"].as_array().unwrap().iter().map(|ban| ban["subject"].as_str().unwrap()).collect()
}

/// The lines of the table without its head, each as its mark and first word.
fn rows(text: &str) -> Vec<(char, &str)> {
    let rows = text.lines().skip(1).filter(|line| line.contains("  "));
    rows.map(|line| (line.chars().next().unwrap(), line[2..].split_whitespace().next().unwrap())).collect()
}

#[test]
fn list_joins_kernel_and_ledger() {
    let host = Host::with(&[
        ban("192.0.2.1", ago(60), HOUR),
        ban("192.0.2.2", ago(120), 2 * HOUR),
        ban("2001:db8:1:2::/64", ago(60), 3 * HOUR),
        ban("192.0.2.99", ago(2 * HOUR), HOUR),
    ]);
    host.block(&[("192.0.2.1", HOUR / 2), ("2001:db8:1:2::/64", 3 * HOUR), ("198.51.100.9", 4 * HOUR)]);
    let text = host.text(&[]);
    let expected = [(' ', "192.0.2.1"), ('!', "192.0.2.2"), (' ', "2001:db8:1:2::/64"), ('?', "198.51.100.9")];
    assert_eq!(rows(&text), expected, "expired bans are not listed:\n{text}");
    assert!(text.contains("\n! in the ledger, ") && text.contains("\n? in the kernel, "), "{text}");

    let list = host.json(&[]);
    assert_eq!(list["kernel"], true);
    let of = |text: &str| list["bans"].as_array().unwrap().iter().find(|ban| ban["subject"] == text).unwrap().clone();
    let both = of("192.0.2.1");
    assert!(
        (1_790..=1_800).contains(&both["left_s"].as_u64().unwrap()),
        "the kernel's remaining time is shown: {both}"
    );
    assert_eq!((&both["in_kernel"], &both["in_ledger"]), (&true.into(), &true.into()));
    assert_eq!(both["ports"], serde_json::json!([{"proto": "tcp", "port": 23}, {"proto": "tcp", "port": 8080}]));
    assert_eq!([&both["class"], &both["author"], &both["method"]], ["syn", "detector", "nft"]);
    assert_eq!((&both["probes"], &both["strikes"], both.get("name")), (&7.into(), &1.into(), None));
    assert_eq!(of("192.0.2.2")["in_kernel"], false);
    let unknown = of("198.51.100.9");
    assert_eq!(
        (&unknown["in_ledger"], &unknown["class"], &unknown["since"]),
        (&false.into(), &Value::Null, &Value::Null)
    );
}

#[test]
fn list_order_and_period_are_selectable() {
    let again = ban("192.0.2.3", ago(30), HOUR);
    let host = Host::with(&[
        ban("192.0.2.3", ago(3 * HOUR), 4 * HOUR),
        ban("192.0.2.1", ago(2 * HOUR), 9 * HOUR),
        again,
        BanRecord::wanted_by(BanAuthor::Operator, target("192.0.2.2"), ago(10), Expiry::Never, Backend::Nft),
    ]);
    host.block(&[("192.0.2.1", 7 * HOUR), ("192.0.2.3", HOUR)]);
    assert_eq!(targets(&host.json(&[])), ["192.0.2.3", "192.0.2.1", "192.0.2.2"]);
    assert_eq!(targets(&host.json(&["--sort", "since"])), ["192.0.2.2", "192.0.2.3", "192.0.2.1"]);
    assert_eq!(targets(&host.json(&["--sort", "hits"])), ["192.0.2.3", "192.0.2.1", "192.0.2.2"]);
    assert_eq!(targets(&host.json(&["--since", "1h"])), ["192.0.2.3", "192.0.2.2"]);
    let never = &host.json(&["192.0.2.2"])["bans"][0];
    assert_eq!((&never["expires"], &never["left_s"]), (&"never".into(), &Value::Null));
    for wrong in [&["--sort", "name"][..], &["--since", "soon"], &["nobody"], &["192.0.2.1", "192.0.2.2"]] {
        assert_eq!(host.list(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn list_shows_only_requested_target() {
    let wide = target("10.0.0.0/24");
    let host = Host::with(&[
        ban("10.0.0.7", ago(60), HOUR),
        ban("10.0.1.7", ago(60), HOUR),
        ban("2001:db8:1:2::/64", ago(60), HOUR),
        BanRecord { target: wide, ..ban("10.0.0.9", ago(60), 2 * HOUR) },
    ]);
    host.block(&[("10.0.0.7", HOUR), ("10.0.1.7", HOUR), ("2001:db8:1:2::/64", HOUR)]);
    assert_eq!(targets(&host.json(&["10.0.0.7"])), ["10.0.0.7", "10.0.0.0/24"], "the network around it is listed too");
    assert_eq!(targets(&host.json(&["10.0.0.8"])), ["10.0.0.0/24"]);
    assert_eq!(targets(&host.json(&["10.0.0.0/24"])), ["10.0.0.7", "10.0.0.0/24"]);
    assert_eq!(targets(&host.json(&["10.0.0.0/16"])).len(), 3);
    assert_eq!(targets(&host.json(&["2001:db8:1:2::77"])), ["2001:db8:1:2::/64"]);
    for nothing in [&["192.0.2.7"][..], &["--since", "1s"], &["--would-block", "192.0.2.7"]] {
        assert!(host.text(nothing).starts_with("no source that matches "), "{nothing:?}: others are blocked");
    }
    assert_eq!(Host::with(&[]).text(&["--would-block"]), "no source would have been blocked\n");
}

#[test]
fn list_without_table_uses_ledger() {
    let host = Host::with(&[ban("192.0.2.1", ago(60), HOUR)]);
    let output = host.list(&[]);
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!((output.status.code(), rows(&text)), (Some(0), vec![(' ', "192.0.2.1")]));
    assert!(
        stderr(&output)
            .starts_with("portsentry: listed from the ledger alone: the kernel has no table inet portsentry")
    );
    assert_eq!(host.json(&[])["bans"][0]["in_kernel"], Value::Null);
    let by_hand =
        BanRecord::wanted_by(BanAuthor::Operator, target("192.0.2.2"), ago(10), Expiry::Never, Backend::Route);
    let routes = Host::with(&[by_hand]);
    assert_eq!(rows(&routes.text(&[])), [(' ', "192.0.2.2")], "routes need no table");

    host.block(&[("192.0.2.1", HOUR)]);
    let weak = host
        .namespace
        .command("setpriv")
        .args(["--bounding-set=-all", "--inh-caps=-all"])
        .arg(env!("CARGO_BIN_EXE_portsentry"))
        .args(["list", "--state-dir"])
        .arg(host.directory())
        .output()
        .unwrap();
    assert_eq!(weak.status.code(), Some(0), "{}", stderr(&weak));
    assert!(
        stderr(&weak).contains("listed from the ledger alone: only root can read the kernel's sets"),
        "{}",
        stderr(&weak)
    );
}

#[test]
fn list_works_without_ledger() {
    let host = Host::with(&[]);
    host.block(&[("192.0.2.1", HOUR)]);
    std::fs::remove_dir_all(host.directory()).unwrap();
    let output = host.list(&[]);
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!((output.status.code(), rows(&text)), (Some(0), vec![('?', "192.0.2.1")]));
    assert!(stderr(&output).starts_with("portsentry: listed from the kernel alone: there is no ledger in "));
    let other = Host::with(&[]);
    std::fs::remove_dir_all(other.directory()).unwrap();
    let output = other.list(&["--json"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert!(stderr(&output).contains("there is no ledger in ") && stderr(&output).contains("no table inet portsentry"));
}

#[test]
fn many_bans_are_read_from_ledger() {
    let host = Host::with(&[ban("10.0.0.0", ago(60), HOUR)]);
    host.multiply(200_000);
    host.block(&[("10.0.0.1", HOUR), ("192.0.2.1", HOUR)]);
    let list = host.json(&["10.0.0.0/24"]);
    assert_eq!((list["bans"].as_array().unwrap().len(), &list["kernel"]), (256, &false.into()));
    assert!(list["notes"][1].as_str().unwrap().contains("there are 200001 bans"), "{}", list["notes"]);
    let one = host.json(&["10.0.0.1"]);
    assert_eq!((&one["kernel"], &one["bans"][0]["in_kernel"]), (&true.into(), &true.into()));
    assert_eq!(host.json(&["10.0.0.2"])["bans"][0]["in_kernel"], false);
}

#[test]
fn names_are_resolved_where_requested() {
    let host = Host::with(&[ban("127.0.0.1", ago(60), HOUR), ban("192.0.2.1", ago(60), HOUR)]);
    // In the namespace only the lab's /etc/hosts resolves names.
    let list = host.json(&["--names"]);
    let of = |text: &str| list["bans"].as_array().unwrap().iter().find(|ban| ban["subject"] == text).unwrap().clone();
    assert_eq!((&of("127.0.0.1")["name"], &of("192.0.2.1")["name"]), (&"localhost".into(), &Value::Null));
    let output = host.list(&["--names"]);
    assert!(String::from_utf8_lossy(&output.stdout).lines().next().unwrap().contains("  NAME "));
}

#[test]
fn piped_table_is_whole_and_columns_counts() {
    let mut by_hand =
        BanRecord::wanted_by(BanAuthor::Operator, target("192.0.2.2"), ago(10), Expiry::Never, Backend::Nft);
    by_hand.note = Some("brute force on the mail server, see the abuse report of Monday".to_owned());
    let many = (1..=60).map(|port| (Protocol::Tcp, 1_000 + port)).collect();
    let host = Host::with(&[BanRecord { ports: many, ..ban("192.0.2.1", ago(90), HOUR) }, by_hand]);
    host.block(&[("192.0.2.1", HOUR), ("192.0.2.2", HOUR)]);
    let text = host.text(&[]);
    assert!(text.contains(",1060") && text.contains("the abuse report of Monday") && !text.contains('…'), "{text}");
    let output = host.command(&[]).env("COLUMNS", "60").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains('…') && text.lines().all(|line| line.chars().count() <= 60), "{text}");
    let output = host.command(&[]).envs([("COLUMNS", "60"), ("LC_ALL", "C")]).output().unwrap();
    // A second may have passed.
    let shape = |text: &str| text.replace(|letter: char| letter.is_ascii_digit(), "0");
    let ascii = String::from_utf8(output.stdout).unwrap();
    assert_eq!(shape(&ascii), shape(&text.replace('…', "~")), "ASCII in the locale C");
    let list = host.json(&["192.0.2.2"]);
    assert_eq!(list["bans"][0]["note"], "brute force on the mail server, see the abuse report of Monday");
}

#[test]
fn terminal_table_has_terminal_width() {
    let host = Host::with(&[ban("192.0.2.1", ago(60), HOUR)]);
    host.block(&[("192.0.2.1", HOUR)]);
    let portsentry = env!("CARGO_BIN_EXE_portsentry");
    let line = format!("stty cols 30; {portsentry} list --state-dir {} 2>/dev/null", host.directory().display());
    let output = host.namespace.command("script").args(["-qec", &line, "/dev/null"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap().replace('\r', "");
    assert!(text.contains("192.0.2.1") && text.lines().all(|line| line.chars().count() <= 30), "{text}");
    let mut child =
        host.command(&[]).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).lines().count()), (Some(0), 1), "only the note: {output:?}");
}
