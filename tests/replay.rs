//! Tests `portsentry replay` as an operator runs it: real scans that were recorded between two namespaces, the same in
//! other formats, damaged files, and the output as text and as JSON. The scanner is 10.77.1.2 (fd77::2), the host
//! 10.77.1.1 (fd77::1), where only port 80 is open.

#![cfg(test)]

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use etherparse::{IcmpEchoHeader, Icmpv4Type, PacketBuilder};
use serde_json::{Value, json};

fn capture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures").join(format!("{name}.pcap"))
}

fn replay(file: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portsentry"));
    // Configuration of this machine must not affect the tests.
    command.arg("replay").arg(file).args(["--config", "/dev/null"]).args(arguments).output().unwrap()
}

/// As [`replay`], with this configuration.
fn configured(config: &str, file: &Path, arguments: &[&str]) -> Output {
    let path = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&path, config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_portsentry"));
    command.arg("replay").arg(file).arg("--config").arg(path.path()).args(arguments).output().unwrap()
}

/// The last JSON object of an output.
fn last(output: &Output) -> Value {
    serde_json::from_slice(output.stdout.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap()).unwrap()
}

/// All JSON objects that a replay prints; the last one is the summary.
fn objects(file: &Path, arguments: &[&str]) -> Vec<Value> {
    let output = replay(file, &[&["--json"], arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

fn summary(file: &Path, arguments: &[&str]) -> Value {
    let last = objects(file, arguments).pop().unwrap();
    assert_eq!(last["event"], "summary");
    last
}

/// The targets that a replay would have blocked, and the classes of the evidence.
fn blocked(file: &Path, arguments: &[&str]) -> Vec<(String, Vec<String>)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let summary = summary(file, arguments);
    let judged = summary["blocked"].as_array().unwrap().iter();
    judged
        .map(|ban| {
            (text(&ban["subject"]), ban["ports"].as_array().unwrap().iter().map(|p| text(&p["class"])).collect())
        })
        .collect()
}

#[test]
fn scan_kinds_are_found_in_captures() {
    for (name, class, ports) in [
        ("nmap-sS", "syn", 3),
        ("nmap-sT", "syn", 3),
        ("nmap-sN", "null", 1),
        ("nmap-sF", "fin", 1),
        ("nmap-sX", "xmas", 1),
        ("nmap-f", "fragment", 1),
        ("nmap-scanflags", "illegal", 1),
        // Its first three ports are mail ports, which count as one port until it probes an unrelated one.
        ("masscan", "syn", 4),
        ("hping", "syn", 3),
        ("hping-xmas", "xmas", 1),
    ] {
        let expected = [("10.77.1.2".to_owned(), vec![class.to_owned(); ports])];
        assert_eq!(blocked(&capture(name), &[]), expected, "{name}");
        assert_eq!(blocked(&capture(name), &["--local", "10.77.1.1"]), expected, "{name}, one host");
        assert_eq!(blocked(&capture(name), &["--local", "10.77.1.0/24"]), expected, "{name}, its network");
        assert!(blocked(&capture(name), &["--local", "192.0.2.1"]).is_empty(), "{name}, for another host");
    }
    // Its first three ports are those of mail.
    assert_eq!(blocked(&capture("nmap6-sS"), &[]), [("fd77::/64".to_owned(), vec!["syn".to_owned(); 4])]);
}

#[test]
fn ack_scans_are_logged_or_banned() {
    for (name, class) in [("nmap-sM", "maimon"), ("nmap-sA", "ack"), ("nmap-sW", "ack"), ("nmap-sA-data", "ack")] {
        let reported = summary(&capture(name), &[]);
        assert!(reported["blocked"].as_array().unwrap().is_empty(), "{name}");
        assert_eq!(reported["logged"][0]["subject"], "10.77.1.2", "{name}");
        let last = last(&configured("[detect]\nack = \"ban\"\n", &capture(name), &["--json"]));
        assert_eq!(last["blocked"][0]["subject"], "10.77.1.2", "{name}");
        assert!(last["blocked"][0]["ports"].as_array().unwrap().iter().all(|port| port["class"] == class), "{name}");
    }
}

#[test]
fn one_port_of_network_is_scan() {
    // This capture has no replies. The ports count as closed because the network is named on the command line.
    let local = ["--local", "10.88.0.0/24"];
    let bans = blocked(&capture("zmap"), &local);
    assert_eq!(bans, [("10.77.1.2".to_owned(), vec!["syn".to_owned()])]);
    let summary = summary(&capture("zmap"), &local);
    assert_eq!(summary["blocked"][0]["reason"], "closed ports of 16 hosts were probed");
    assert_eq!(summary["blocked"][0]["victims"].as_array().unwrap().len(), 16);
    assert!(blocked(&capture("zmap"), &[]).is_empty());
}

#[test]
fn forged_decoy_sources_are_banned_too() {
    let bans: Vec<_> = blocked(&capture("nmap-decoys"), &[]).into_iter().map(|(target, _)| target).collect();
    assert_eq!(bans, ["10.77.1.2", "10.77.1.66", "10.77.1.67"]);
}

#[test]
fn udp_scan_blocks_only_if_configured() {
    let logged = summary(&capture("nmap-sU"), &[]);
    assert_eq!(
        (logged["blocked"].as_array().unwrap().len(), &logged["logged"][0]["subject"]),
        (0, &json!("10.77.1.2"))
    );
    assert!(logged["logged"][0].get("expires").is_none());
    let last = last(&configured("expire = \"7d\"\n[udp]\nblock = true\n", &capture("nmap-sU"), &["--json"]));
    assert_eq!(last["blocked"][0]["subject"], "10.77.1.2");
    let day = |key: &str| humantime::parse_rfc3339(last["blocked"][0][key].as_str().unwrap()).unwrap();
    assert_eq!(day("expires").duration_since(day("time")).unwrap().as_secs(), 7 * 86_400);
}

#[test]
fn visit_and_damaged_probes_are_not_banned() {
    for name in ["web", "nmap-badsum"] {
        let summary = summary(&capture(name), &[]);
        assert_eq!((&summary["blocked"], &summary["logged"]), (&json!([]), &json!([])), "{name}");
    }
    assert!(summary(&capture("web"), &[])["innocent"]["open"].as_u64().unwrap() > 3);
    assert_eq!(summary(&capture("nmap-badsum"), &[])["undecoded"]["malformed"], 8);
}

#[test]
fn source_below_threshold_is_named() {
    let output = configured("[detect]\nscan_trigger = 15\n", &capture("nmap-sS"), &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("\n0 would be banned\n"), "{text}");
    assert!(
        text.contains("\n1 below the threshold of 16 ports:\n  10.77.1.2: tcp 21, tcp 22, tcp 23, tcp 24, tcp 25"),
        "{text}"
    );
}

#[test]
fn protected_sources_are_named_and_never_blocked() {
    let output = configured("[allow]\nnetworks = [\"10.77.1.2\"]\n", &capture("nmap-sX"), &["--json"]);
    let last = last(&output);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!((&last["blocked"], &last["spared"][0]["reason"]), (&json!([]), &json!("on the allow-list")));
    assert!(!text.contains("\"block\""), "{text}");
}

#[test]
fn events_carry_capture_time_in_both_forms() {
    let events = objects(&capture("nmap-sS"), &[]);
    let kinds: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["probe", "probe", "block", "summary"]);
    assert!(events[2].get("reaction_us").is_none());
    let time = events[2]["time"].as_str().unwrap();
    assert_eq!(events[3]["blocked"][0]["time"], time);
    let text = String::from_utf8(replay(&capture("nmap-sS"), &[]).stdout).unwrap();
    let line = format!(
        "{time} attackalert: Host 10.77.1.2 would be banned via nftables set inet portsentry blocked for 1day\n"
    );
    assert!(text.contains(&line) && !text.contains("has been blocked"), "{text}");
    assert!(time.starts_with("2026-11-21T06:25:03.89"), "{time}");
}

/// Turns a stored capture (little-endian, microseconds, Ethernet) into another format.
fn convert(name: &str, convert: impl Fn(&mut Vec<u8>, u32, u32, &[u8]), header: &[u8]) -> tempfile::NamedTempFile {
    let bytes = std::fs::read(capture(name)).unwrap();
    let mut converted = header.to_vec();
    let mut rest = &bytes[24..];
    while let Some((record, behind)) = rest.split_first_chunk::<16>() {
        let word = |at: usize| u32::from_le_bytes(record[at..at + 4].try_into().unwrap());
        let (frame, behind) = behind.split_at(word(8) as usize);
        convert(&mut converted, word(0), word(4), frame);
        rest = behind;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), converted).unwrap();
    file
}

#[test]
fn verdicts_are_equal_in_every_format() {
    for name in ["nmap-sS", "nmap-f", "nmap6-sS", "nmap-sU", "web"] {
        let expected = objects(&capture(name), &[]);
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
        let length = |frame: &[u8]| u32::try_from(frame.len()).unwrap();
        let nano = convert(
            name,
            |file, seconds, micros, frame| {
                file.extend(words(&[seconds, micros * 1_000, length(frame), length(frame)]));
                file.extend(frame);
            },
            &words(&[0xa1b2_3c4d, 0x0002_0004, 0, 0, 96, 1]),
        );
        assert_eq!(objects(nano.path(), &[]), expected, "{name}: nanoseconds, big-endian");
        let section = words(&[0x0a0d_0d0a, 28, 0x1a2b_3c4d, 0x0001_0000, u32::MAX, u32::MAX, 28]);
        let interfaces = words(&[1, 20, 276 << 16, 0, 20, 1, 20, 1 << 16, 0, 20]);
        let pcapng = convert(
            name,
            |file, seconds, micros, frame| {
                let ticks = u64::from(seconds) * 1_000_000 + u64::from(micros);
                let total = 32 + length(frame).next_multiple_of(4);
                let (high, low) = ((ticks >> 32) as u32, (ticks & 0xffff_ffff) as u32);
                file.extend(words(&[6, total, 1, high, low, length(frame), length(frame)]));
                file.extend(frame);
                file.resize(file.len().next_multiple_of(4), 0);
                file.extend(words(&[total]));
            },
            &[section, interfaces].concat(),
        );
        assert_eq!(objects(pcapng.path(), &[]), expected, "{name}: pcapng, second interface");
    }
}

#[test]
fn packets_before_damage_are_judged() {
    let bytes = std::fs::read(capture("nmap-sS")).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes[..bytes.len() - 5]).unwrap();
    let output = replay(file.path(), &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let last = last(&output);
    assert_eq!((&last["event"], &last["blocked"][0]["subject"]), (&json!("summary"), &json!("10.77.1.2")));
    let error = String::from_utf8(output.stderr).unwrap();
    let position = format!("the file is truncated: it ends at byte {}", bytes.len() - 5);
    assert!(error.contains(&position) && error.contains("complete packets: 16"), "{error}");
}

#[test]
fn non_capture_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    for (bytes, sentence) in [
        (&b"hello, world"[..], "not in the format pcap or pcapng"),
        (b"", "the file is empty"),
        (&[0x1f, 0x8b, 8, 0, 0], "the file is compressed with gzip; decompress it first"),
    ] {
        std::fs::write(&file, bytes).unwrap();
        let output = replay(&file, &[]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
        assert!(error.starts_with("portsentry: ") && error.contains(sentence) && error.lines().count() == 1, "{error}");
    }
    for (path, sentence) in
        [(directory.path(), "read twice"), (Path::new("-"), "No such file"), (Path::new("/dev/null"), "read twice")]
    {
        let error = String::from_utf8(replay(path, &[]).stderr).unwrap();
        assert!(error.contains(sentence), "{error}");
    }
}

#[test]
fn empty_or_unknown_capture_is_read_completely() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut bytes = std::fs::read(capture("web")).unwrap();
    bytes[20] = 147;
    std::fs::write(file.path(), &bytes).unwrap();
    let output = replay(file.path(), &["--json"]);
    let links: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(links["unknown_links"]["147"], links["packets"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "a capture without any judged packet is an error");
    assert!(error.contains("unsupported link type 147"), "{error}");
    std::fs::write(file.path(), &bytes[..24]).unwrap();
    assert_eq!(summary(file.path(), &[])["packets"], 0);
}

#[test]
fn closed_output_pipe_ends_replay_quietly() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_portsentry"));
    command.arg("replay").arg(capture("nmap-sT")).args(["--config", "/dev/null"]);
    let output = command.stdout(writer).output().unwrap();
    assert_eq!(
        (output.status.code(), output.stderr.len()),
        (Some(0), 0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A port of a host, and the last byte of its hardware address.
type End<'a> = (u8, &'a str, u16);

#[derive(Clone, Copy)]
enum Content<'a> {
    Syn,
    SynAck,
    Reset,
    Datagram,
    Ping,
    /// An ICMPv6 error, with its code and the frame that it quotes.
    Unreachable(u8, &'a [u8]),
}

fn frame(from: End, to: End, content: Content) -> Vec<u8> {
    let link = |last| [2, 0, 0, 0, 0, last];
    let ethernet = PacketBuilder::ethernet2(link(from.0), link(to.0));
    let ip = match (from.1.parse().unwrap(), to.1.parse().unwrap()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => ethernet.ipv4(source.octets(), destination.octets(), 64),
        (IpAddr::V6(source), IpAddr::V6(destination)) => ethernet.ipv6(source.octets(), destination.octets(), 64),
        _ => panic!("two families"),
    };
    let mut frame = Vec::new();
    match content {
        Content::Syn => ip.tcp(from.2, to.2, 1, 1024).syn().write(&mut frame, &[]),
        Content::SynAck => ip.tcp(from.2, to.2, 1, 1024).syn().ack(2).write(&mut frame, &[]),
        Content::Reset => ip.tcp(from.2, to.2, 1, 0).rst().ack(2).write(&mut frame, &[]),
        Content::Datagram => ip.udp(from.2, to.2).write(&mut frame, b"x"),
        Content::Ping => {
            let echo = IcmpEchoHeader { id: 1, seq: 1 };
            ip.icmpv4(Icmpv4Type::EchoRequest(echo)).write(&mut frame, b"x")
        }
        Content::Unreachable(code, quoted) => ip.icmpv6_raw(1, code, [0; 4]).write(&mut frame, &quoted[14..]),
    }
    .unwrap();
    frame
}

fn little_endian(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A capture of Ethernet frames, ten per second.
fn written(frames: &[Vec<u8>]) -> tempfile::NamedTempFile {
    let mut bytes = little_endian(&[0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_535, 1]);
    for (number, frame) in (0_u32..).zip(frames) {
        let length = u32::try_from(frame.len()).unwrap();
        bytes.extend(little_endian(&[1_700_000_000 + number / 10, number % 10 * 100_000, length, length]));
        bytes.extend(frame);
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

const NONE_BLOCKED: [(String, Vec<String>); 0] = [];

#[test]
fn unanswered_client_of_many_servers_is_innocent() {
    let servers: Vec<_> = (1..=20).map(|last| format!("198.51.{last}.80")).collect();
    let ask = |server: &String| frame((2, "10.22.22.2", 40_000), (1, server, 443), Content::Syn);
    let silent: Vec<_> = servers.iter().map(ask).collect();
    let file = written(&silent);
    assert_eq!(blocked(file.path(), &[]), NONE_BLOCKED, "a phone whose uplink is down");
    let summary = summary(file.path(), &[]);
    assert_eq!((&summary["innocent"]["unanswered"], &summary["suspects"]), (&json!(20), &json!([])));
    let refuse = |server: &String| frame((1, server, 443), (2, "10.22.22.2", 40_000), Content::Reset);
    let refused: Vec<_> = servers.iter().flat_map(|server| [ask(server), refuse(server)]).collect();
    assert_eq!(blocked(written(&refused).path(), &[])[0].0, "10.22.22.2", "a scan of the network");
}

#[test]
fn icmpv6_refusal_counts_missing_route_does_not() {
    let scanned = |code| {
        let frames = (1..=20).flat_map(|net| {
            let (client, server) = ((2, "fd00:3::9035", 40_000), format!("2a00:{net}::71"));
            let ask = frame(client, (1, &server, 443), Content::Syn);
            let error = frame((1, "fd00:3::1", 0), client, Content::Unreachable(code, &ask));
            [ask, error]
        });
        blocked(written(&frames.collect::<Vec<_>>()).path(), &[]).len()
    };
    assert_eq!(scanned(0), 0, "no route");
    assert_eq!(scanned(3), 0, "no such host");
    assert_eq!(scanned(1), 1, "prohibited");
    assert_eq!(scanned(4), 1, "port unreachable");
}

#[test]
fn silent_ports_count_half_without_local() {
    let probe = |port| frame((2, "192.168.1.100", 50_000), (1, "10.0.0.1", port), Content::Syn);
    let file = |ports: u16| written(&(20..20 + ports).map(probe).collect::<Vec<_>>());
    assert_eq!(blocked(file(5).path(), &[]), NONE_BLOCKED);
    assert_eq!(blocked(file(6).path(), &[])[0].0, "192.168.1.100");
    assert_eq!(blocked(file(3).path(), &["--local", "10.0.0.1"])[0].0, "192.168.1.100");
    let file = written(
        &[192, 5_351, 1_900].map(|port| frame((2, "10.3.31.108", 64_779), (1, "10.3.31.1", port), Content::Datagram)),
    );
    assert_eq!(summary(file.path(), &[])["logged"], json!([]), "a client that looks for services of its router");
}

#[test]
fn gateway_is_inferred_from_link_addresses() {
    const HOST: End = (1, "192.168.1.46", 40_000);
    let ask = |port| {
        [
            frame((2, "192.168.1.1", 36_643), (1, HOST.1, port), Content::Syn),
            frame((1, HOST.1, port), (2, "192.168.1.1", 36_643), Content::Reset),
        ]
    };
    let printers = [79, 515, 9_100].into_iter().flat_map(ask).collect::<Vec<_>>();
    assert_eq!(blocked(written(&printers).path(), &[])[0].0, "192.168.1.1");
    let visit = |server| [frame(HOST, (2, server, 443), Content::Syn), frame((2, server, 443), HOST, Content::SynAck)];
    let routed: Vec<_> =
        ["198.51.100.1", "203.0.113.1", "8.8.8.8"].into_iter().flat_map(visit).chain(printers).collect();
    let file = written(&routed);
    for arguments in [&[][..], &["--local", HOST.1]] {
        let summary = summary(file.path(), arguments);
        assert_eq!((&summary["blocked"], &summary["gateways"]), (&json!([]), &json!(["192.168.1.1"])));
        assert_eq!(summary["spared"][0]["reason"], "a gateway of this host");
    }
}

#[test]
fn pings_of_few_servers_are_not_scan() {
    let ping = |server| frame((2, "192.168.43.9", 0), (1, server, 0), Content::Ping);
    let file = written(&["8.8.8.8", "8.8.4.4", "4.2.2.2", "174.137.42.65"].map(ping));
    let logged = |arguments: &[&str]| {
        let arguments = [&["--json"], arguments].concat();
        let last = last(&configured("[detect]\nicmp = true\n", file.path(), &arguments));
        last["logged"].as_array().unwrap().len()
    };
    assert_eq!(logged(&[]), 0);
    assert_eq!(
        logged(&["--local", "8.0.0.0/8", "--local", "4.2.2.2", "--local", "174.137.42.65"]),
        1,
        "the operator's own hosts"
    );
}

#[test]
fn scan_is_found_in_scanners_own_capture() {
    let cooked = convert(
        "nmap-sS",
        |file, seconds, micros, frame| {
            let from_scanner = frame[26..30] == [10, 77, 1, 2];
            let kind = if from_scanner { 4 } else { 0 };
            let length = u32::try_from(frame.len() + 2).unwrap();
            file.extend(little_endian(&[seconds, micros, length, length]));
            file.extend([0, kind, 0, 1, 0, 6]);
            file.extend(&frame[6..12]);
            file.extend([0, 0]);
            file.extend(&frame[12..]);
        },
        &little_endian(&[0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_535, 113]),
    );
    for arguments in [&[][..], &["--local", "10.77.1.1"], &["--local", "10.77.1.0/24"]] {
        assert_eq!(blocked(cooked.path(), arguments)[0].0, "10.77.1.2", "{arguments:?}");
    }
    assert_eq!(
        blocked(cooked.path(), &["--local", "10.77.1.2"]),
        NONE_BLOCKED,
        "packets sent by a host are no probes of it"
    );
}

#[test]
fn scan_in_broadcast_frames_is_found() {
    let mut probes: Vec<_> =
        (20..26).map(|port| frame((2, "192.168.1.100", 50_000), (1, "10.0.0.1", port), Content::Syn)).collect();
    probes.iter_mut().for_each(|frame| frame[..6].fill(0xff));
    assert_eq!(blocked(written(&probes).path(), &[])[0].0, "192.168.1.100");
}

#[test]
fn summary_names_judged_ports_and_result() {
    let file = capture("nmap-sS");
    let found = summary(&file, &["--local", "10.77.1.1"]);
    assert_eq!(found["local"], json!(["10.77.1.1"]));
    assert_eq!(found["blocked"][0]["victims"], json!(["10.77.1.1"]));
    let open = &summary(&capture("web"), &[])["open"];
    let server = open.as_array().unwrap().iter().find(|open| open["port"] == 80).unwrap();
    assert_eq!(
        (&server["address"], &server["proto"], &server["reason"]),
        (&json!("10.77.1.1"), &json!("tcp"), &json!("sends"))
    );
    let text = String::from_utf8(replay(&file, &[]).stdout).unwrap();
    for part in [
        "\nconfiguration: /dev/null\nsettings: detect.scan_trigger = 2, detect.window = \"30m\", expire = \"1day\"; monitored ports: tcp ",
        "\njudged: the ports of every address",
        "(syn) of 10.77.1.1",
        "\n1 would be banned:\n",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn fifo_is_refused_without_waiting_for_writer() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    let error = String::from_utf8(replay(&path, &[]).stderr).unwrap();
    assert!(error.contains("not a regular file, and the capture is read twice"), "{error}");
}
