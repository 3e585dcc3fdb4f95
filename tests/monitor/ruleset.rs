//! Tests the reports about the table, its chain, its rules and its sets.

use portsentry::netlink::nft::monitor::TableChange::{ElementLoaded, RulesetChanged, SetGone, TableGone};
use portsentry::netlink::nft::{Batch, Installed, RulesetSpec, Set, install, put_ban};

use super::{assert_quiet, changes_after, next, nft, target, watched};

#[test]
fn lost_table_is_reported_once() {
    for command in ["flush ruleset", "delete table inet portsentry"] {
        watched(async |monitor, socket| {
            nft("add element inet portsentry blocked { 192.0.2.1 }");
            assert_eq!(next(monitor).await.len(), 1);
            assert_eq!(changes_after(monitor, command).await, [TableGone], "{command}");
            assert_eq!(monitor.committer().unwrap().name, "nft");
            // What the daemon does in response is not tested here.
            assert_eq!(install(socket, &RulesetSpec::default()).unwrap(), Installed::Created);
            let mut batch = Batch::new();
            put_ban(&mut batch, target("192.0.2.1"), portsentry::types::Expiry::Never);
            socket.transact(&mut batch).unwrap();
            assert_quiet(monitor).await;
        });
    }
}

#[test]
fn replaced_table_is_reported_gone_then_new() {
    watched(async |monitor, _| {
        let file = include_str!("../../nft/portsentry.nft");
        let commands = format!("flush ruleset\n{file}\nadd element inet portsentry blocked {{ 192.0.2.1 }}");
        let changes = changes_after(monitor, &commands).await;
        assert_eq!(changes, [TableGone, RulesetChanged, ElementLoaded(target("192.0.2.1"))]);
        assert_quiet(monitor).await;
    });
}

#[test]
fn altered_ruleset_is_reported() {
    watched(async |monitor, _| {
        for command in [
            "insert rule inet portsentry prerouting accept",
            "add rule inet portsentry prerouting counter",
            "chain inet portsentry prerouting { policy drop; }",
            "add table inet portsentry { flags dormant; }",
            "add set inet portsentry other { type ipv4_addr; }",
            "delete set inet portsentry other",
            "add chain inet portsentry other",
            "delete chain inet portsentry other",
            "flush chain inet portsentry prerouting",
        ] {
            assert_eq!(changes_after(monitor, command).await, [RulesetChanged], "{command}");
        }
        assert_eq!(changes_after(monitor, "delete set inet portsentry blocked6").await, [SetGone(Set::Blocked6)]);
        assert_eq!(changes_after(monitor, "delete chain inet portsentry prerouting").await, [RulesetChanged]);
    });
}

#[test]
fn other_tables_are_not_reported() {
    watched(async |monitor, _| {
        // The same names in another family belong to another table.
        for table in ["inet other", "ip portsentry", "inet portsentry6"] {
            nft(&format!(
                "table {table} {{
                    set blocked {{ type ipv4_addr; elements = {{ 192.0.2.1 }}; }}
                    chain prerouting {{ type filter hook prerouting priority raw; ip saddr @blocked drop; }}
                }}"
            ));
            nft(&format!("add element {table} blocked {{ 192.0.2.2 }}"));
            nft(&format!("flush set {table} blocked"));
            nft(&format!("delete table {table}"));
        }
        assert_quiet(monitor).await;
    });
}

#[test]
fn reloaded_file_duplicates_are_reported() {
    watched(async |monitor, _| {
        assert_eq!(changes_after(monitor, include_str!("../../nft/portsentry.nft")).await, [RulesetChanged]);
        assert_quiet(monitor).await;
    });
}
