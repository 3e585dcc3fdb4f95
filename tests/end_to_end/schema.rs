//! Tests the JSON output of the commands against the schemas in docs/schema. A new key has to be added there.

use std::path::Path;
use std::process::Command;

use netns_lab::Lab;
use netns_lab::daemon::Daemon;
use serde_json::Value;

pub(crate) struct Schema(Value);

impl Schema {
    pub(crate) fn of(command: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("docs/schema/{command}.schema.json"));
        Self(serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap())
    }

    /// Panics if `value` does not match the schema.
    pub(crate) fn check(&self, value: &Value) {
        self.check_at("", &self.0, value);
    }

    /// Checks the keywords that the schemas use, and panics at any other, which would otherwise be ignored.
    fn check_at(&self, at: &str, schema: &Value, value: &Value) {
        let schema = match schema["$ref"].as_str() {
            Some(name) => &self.0["$defs"][name.strip_prefix("#/$defs/").unwrap()],
            None => schema,
        };
        let keywords = schema.as_object().unwrap_or_else(|| panic!("{at}: no schema"));
        for (keyword, rule) in keywords {
            match keyword.as_str() {
                "$schema" | "$defs" | "title" | "description" => {}
                "type" => {
                    let kinds = rule.as_array().cloned().unwrap_or_else(|| vec![rule.clone()]);
                    let is = |kind: &Value| match kind.as_str().unwrap() {
                        "object" => value.is_object(),
                        "array" => value.is_array(),
                        "string" => value.is_string(),
                        "boolean" => value.is_boolean(),
                        "integer" => value.is_i64() || value.is_u64(),
                        "null" => value.is_null(),
                        other => panic!("{at}: type {other}"),
                    };
                    assert!(kinds.iter().any(is), "{at} is {value}, not {rule}");
                }
                "enum" => assert!(rule.as_array().unwrap().contains(value), "{at} is {value}, none of {rule}"),
                "minimum" => assert!(value.is_null() || value.as_i64() >= rule.as_i64(), "{at} is {value}"),
                "maximum" => assert!(value.is_null() || value.as_i64() <= rule.as_i64(), "{at} is {value}"),
                "items" => {
                    value
                        .as_array()
                        .into_iter()
                        .flatten()
                        .for_each(|item| self.check_at(&format!("{at}[]"), rule, item));
                }
                "required" => {
                    for key in rule.as_array().unwrap().iter().filter(|_| value.is_object()) {
                        assert!(value.get(key.as_str().unwrap()).is_some(), "{at} has no {key}: {value}");
                    }
                }
                "properties" => {
                    for (key, inner) in value.as_object().into_iter().flatten() {
                        if let Some(schema) = rule.get(key) {
                            self.check_at(&format!("{at}.{key}"), schema, inner);
                        }
                    }
                }
                "additionalProperties" => {
                    for key in value.as_object().into_iter().flat_map(|object| object.keys()) {
                        assert!(
                            schema["properties"].get(key).is_some(),
                            "{at}.{key} is in no schema; add it to docs/schema"
                        );
                    }
                }
                other => panic!("{at}: the keyword {other} is not supported by this test"),
            }
        }
    }
}

#[test]
fn every_output_matches_its_schema() {
    let lab = Lab::new(&["attacker", "other", "suspect"]);
    let file = lab.path("events.json");
    let text = format!("[allow]\nnetworks = [\"{}\"]\n[report]\njson_file = {file:?}\n", lab.v4("other"));
    let daemon = Daemon::start_configured(&lab, &text, &["--no-sandbox"]);
    let attacker = lab.provoke_ban("attacker");
    lab.probe("attacker", attacker, lab.victim_v4("attacker").into(), &[905]);
    lab.probe_v4("other", &[901, 902, 903, 904]);
    lab.probe_v4("suspect", &[901]);
    daemon.expect_line(&format!("from host: {0}/{0}", lab.v4("suspect")));
    lab.succeed(&["block", "192.0.2.7", "--expire", "never", "--reason", "a word"]);
    lab.succeed(&["unblock", &attacker.to_string()]);
    assert_eq!(lab.provoke_ban("attacker"), attacker);
    daemon.expect_line("is already blocked Ignoring");

    let status = lab.ask(&["status"]);
    Schema::of("status").check(&status);
    let explain = Schema::of("explain");
    let explained = lab.ask(&["explain", &attacker.to_string()]);
    explain.check(&explained);
    assert_eq!(
        (&explained["history"][0]["author"], &explained["blocked"]["network"]),
        (&"detector".into(), &Value::Null)
    );
    explain.check(&lab.ask(&["explain", "192.0.2.7"]));
    let suspect = lab.ask(&["explain", &lab.v4("suspect").to_string()]);
    assert_eq!(suspect["suspected"].as_array().unwrap().len(), 1, "{suspect}");
    explain.check(&suspect);

    let run = |words: &[&str]| {
        let output = lab.portsentry().args(words).arg("--json").output().unwrap();
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
    };
    let state = lab.path("state");
    let list = run(&["list", "--names", "--state-dir", state.to_str().unwrap()]);
    Schema::of("list").check(&list);
    let by_hand = list["bans"].as_array().unwrap().iter().find(|ban| ban["subject"] == "192.0.2.7").unwrap();
    assert_eq!(
        (&by_hand["note"], &by_hand["expires"], &by_hand["left_s"]),
        (&"a word".into(), &"never".into(), &Value::Null)
    );
    let detected = list["bans"].as_array().unwrap().iter().find(|ban| ban["author"] == "detector").unwrap();
    assert_eq!(
        detected["strikes"], explained["history"][0]["strikes"],
        "the same number of strikes: {detected} {explained}"
    );
    assert_eq!(detected["ports"], explained["history"][0]["ports"]);

    let check = Schema::of("check");
    let right = lab.write("right.toml", "");
    check.check(&run(&["check", right.to_str().unwrap()]));
    let wrong = lab.write("wrong.toml", "expire = \"soon\"\n");
    check.check(&run(&["check", wrong.to_str().unwrap()]));

    daemon.stop();
    let events = Schema::of("events");
    let text = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    lines.iter().for_each(|event| events.check(event));
    for kind in ["start", "probe", "block", "refused", "repeat", "unblock", "stop", "note"] {
        assert!(lines.iter().any(|event| event["event"] == kind), "no {kind}: {text}");
    }
    let block =
        lines.iter().rfind(|event| event["event"] == "block" && event["subject"] == attacker.to_string()).unwrap();
    assert_eq!((&block["expires"].is_string(), &block["strikes"].is_u64()), (&true, &true), "{block}");
}

#[test]
fn replay_summary_matches_its_schema() {
    let schema = Schema::of("replay");
    let captures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures");
    let mut found = 0;
    for capture in std::fs::read_dir(captures).unwrap().map(|entry| entry.unwrap().path()) {
        if capture.extension().is_none_or(|extension| extension != "pcap") {
            continue;
        }
        found += 1;
        let mut command = Command::new(netns_lab::daemon::binary());
        let output = command.args(["replay", "--json", "--config", "/dev/null"]).arg(&capture).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let summary: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        schema.check(&summary);
        let settings = &summary["settings"];
        assert_eq!(
            (&settings["scan_trigger"], &settings["window_s"], &settings["expire_s"]),
            (&2.into(), &1_800.into(), &86_400.into()),
            "{settings}"
        );
        assert!(settings["tcp_ports"].as_u64() > Some(1_000) && settings["udp_ports"].as_u64() > Some(1_000));
    }
    assert!(found > 5, "{found} captures");
}
