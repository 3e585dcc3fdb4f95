//! Tests prefix bans: when they happen, how wide they are, and which prefixes they never cover.

use std::time::Duration;

use super::scene::Gist::{Exempt, Ignored, Probe, Repeated};
use super::scene::{DAY, HERE_V6, SCANNER, Scene, address, builtin, target};
use crate::engine::{Grade, Host, IgnoreReason, Local, MaxPrefix, Protection, Settings};
use crate::types::{BanTarget, Expiry, Prefix};

fn scene(v4: u8, v6: u8) -> Scene {
    Scene::with(|settings| settings.widest = MaxPrefix { v4, v6 })
}

fn network(text: &str) -> BanTarget {
    BanTarget::Prefix(Prefix::new(text.parse().unwrap()).unwrap())
}

/// Bans each source in turn; returns the target of the last ban.
fn banish(scene: &mut Scene, sources: &[&str]) -> BanTarget {
    sources.iter().for_each(|source| scene.prove(source));
    scene.ban().probe.target
}

const FOUR: [&str; 4] = ["203.0.113.5", "203.0.113.77", "203.0.113.130", "203.0.113.201"];
const FIFTH: &str = "203.0.113.9";

const FOUR_V6: [&str; 4] = ["2001:db8:9:100::1", "2001:db8:9:101::1", "2001:db8:9:1a0::1", "2001:db8:9:1ff::1"];
const FIFTH_V6: &str = "2001:db8:9:133::1";

#[test]
fn fifth_neighbour_bans_their_network() {
    let mut scene = scene(24, 56);
    assert_eq!(banish(&mut scene, &FOUR), target("203.0.113.201"));
    assert_eq!(banish(&mut scene, &[FIFTH]), network("203.0.113.0/24"));
    assert_eq!(banish(&mut scene, &FOUR_V6), target("2001:db8:9:1ff::1"));
    assert_eq!(banish(&mut scene, &[FIFTH_V6]), network("2001:db8:9:100::/56"));
    assert_eq!((scene.ban().probe.observation.source, scene.ban().ports.iter().count()), (address(FIFTH_V6), 3));
    for source in ["203.0.113.0", "203.0.113.255", "2001:db8:9:1ff:ffff::9"] {
        assert_eq!(scene.syn(source, 80), Repeated, "{source}");
    }
    for source in ["203.0.112.255", "203.0.114.0", "2001:db8:9:200::", "2001:db8:9::", "2001:db8:a:100::"] {
        assert_eq!(scene.syn(source, 80), Probe(1), "{source}");
    }
}

#[test]
fn reload_changes_window_of_neighbours() {
    for (window, widened) in [(1_800, true), (60, false)] {
        let mut scene = scene(24, 56);
        banish(&mut scene, &FOUR);
        let settings =
            Settings { window: Duration::from_secs(window), widest: MaxPrefix { v4: 24, v6: 56 }, ..builtin() };
        scene.engine.reconfigure(settings);
        scene.after(120.0);
        assert_eq!(banish(&mut scene, &[FIFTH]) == network("203.0.113.0/24"), widened, "{window} s");
    }
}

#[test]
fn no_prefix_ban_without_configuration() {
    for (v4, v6) in [(32, 64), (31, 60), (0, 0), (23, 32), (255, 128)] {
        let mut scene = scene(v4, v6);
        for n in 0..100 {
            assert_eq!(banish(&mut scene, &[&format!("203.0.113.{n}")]).prefix_len(), 32);
            assert_eq!(banish(&mut scene, &[&format!("2001:db8:9:{n:x}::1")]).prefix_len(), 64);
        }
    }
}

#[test]
fn prefix_ban_counts_only_sources_in_it() {
    let mut scene = scene(26, 64);
    assert_eq!(banish(&mut scene, &FOUR), target("203.0.113.201"));
    assert_eq!(
        banish(&mut scene, &["203.0.113.2", "203.0.113.3"]),
        target("203.0.113.3"),
        "no four sources are in one /26"
    );
    assert_eq!(banish(&mut scene, &["203.0.113.4", FIFTH]), network("203.0.113.0/26"));
    assert_eq!(scene.syn("203.0.113.64", 80), Probe(1));
}

#[test]
fn slash_48_ban_needs_several_slash_56() {
    let ban = |setting, numbers: &[u16]| {
        let mut scene = scene(32, setting);
        numbers.iter().for_each(|number| scene.prove(&format!("2001:db8:9:{number:x}::1")));
        scene.ban().probe.target.to_string()
    };
    let scattered = [0x000, 0x100, 0x200, 0x300, 0x400, 0x500, 0x600, 0x700, 0x800];
    assert_eq!(ban(48, &scattered), "2001:db8:9::/48");
    assert_eq!(ban(48, &scattered[..8]), "2001:db8:9:700::/64", "eight sources are one too few");
    assert_eq!(ban(56, &scattered), "2001:db8:9:800::/64");
    assert_eq!(ban(48, &[1, 2, 3, 4, 5]), "2001:db8:9::/56", "four sources of one household do not count for the /48");
    let two = [0x001, 0x101, 0x002, 0x102, 0x003, 0x103, 0x201, 0x301, 0x104];
    assert_eq!(ban(48, &two), "2001:db8:9::/48");
}

#[test]
fn neighbours_count_together_only_within_the_window() {
    let mut scene = scene(24, 64);
    banish(&mut scene, &FOUR);
    assert_eq!(banish(scene.after(1_800.1), &[FIFTH]), target(FIFTH));
    assert_eq!(banish(&mut scene, &["203.0.113.10", "203.0.113.11", "203.0.113.12"]), target("203.0.113.12"));
    assert_eq!(banish(&mut scene, &["203.0.113.13"]), network("203.0.113.0/24"));
}

#[test]
fn network_ban_keeps_first_length() {
    let mut scene = scene(24, 64);
    for round in 0..3 {
        for n in 0..4 {
            scene.prove(&format!("203.0.113.{}", 4 * round + n));
        }
        assert_eq!(banish(&mut scene, &["203.0.113.200"]), network("203.0.113.0/24"));
        assert_eq!((scene.ban().expiry, scene.ban().strikes), (Expiry::After(DAY), 0));
        scene.after(DAY.as_secs_f64() + 1.0);
    }
    assert_eq!(banish(&mut scene, &["203.0.113.200"]), target("203.0.113.200"));
    assert_eq!(scene.ban().strikes, 0, "nor is it a strike of the last source");
}

#[test]
fn exempt_source_survives_neighbours_ban() {
    for (prefix, why) in [
        ("203.0.113.254/32", Protection::Gateway),
        ("203.0.113.64/27", Protection::Listed),
        ("203.0.113.255/32", Protection::Session),
    ] {
        let mut scene = scene(24, 64);
        scene.protect(prefix, why);
        let four = ["203.0.113.5", "203.0.113.7", "203.0.113.130", "203.0.113.201"];
        assert_eq!(banish(&mut scene, &four), target("203.0.113.201"));
        assert_eq!(banish(&mut scene, &[FIFTH]), target(FIFTH), "{prefix}");
    }
    // This host's own neighbours.
    let mut scene = scene(24, 48);
    for n in 10..40 {
        assert_eq!(banish(&mut scene, &[&format!("192.0.2.{n}")]).prefix_len(), 32);
    }
    assert!(HERE_V6.starts_with("2001:db8::"));
    for n in 0x100..0x104 {
        scene.prove(&format!("2001:db8:0:{n:x}::1"));
    }
    let neighbour = banish(&mut scene, &["2001:db8:0:1aa::1"]);
    assert_eq!(neighbour, network("2001:db8:0:100::/56"), "the neighbouring household");
    for n in 2..0x22 {
        let target = banish(&mut scene, &[&format!("2001:db8:0:{n:x}00::1")]);
        assert_eq!(target.prefix_len(), 64, "but not the /48 that this host is in");
    }
}

#[test]
fn own_prefixes_are_not_blocked() {
    let mut scene = scene(24, 64);
    scene.host = Host::new(Local::Prefixes(vec!["192.0.2.0/24".parse().unwrap(), "203.0.113.8/30".parse().unwrap()]));
    assert_eq!(banish(&mut scene, &FOUR), target("203.0.113.201"));
    assert_eq!(banish(&mut scene, &["203.0.113.3"]), target("203.0.113.3"));
    let other = ["198.51.100.1", "198.51.100.2", "198.51.100.3", "198.51.100.4", "198.51.100.5"];
    assert_eq!(banish(&mut scene, &other), network("198.51.100.0/24"));
}

#[test]
fn later_protected_address_passes_blocked_network() {
    let mut scene = scene(24, 64);
    banish(&mut scene, &FOUR);
    banish(&mut scene, &[FIFTH]);
    scene.protect("203.0.113.40/32", Protection::Session);
    assert_eq!(scene.syn("203.0.113.40", 21), Exempt(Protection::Session));
    assert_eq!(scene.syn("203.0.113.41", 21), Repeated);
}

#[test]
fn forgeable_evidence_bans_no_network() {
    let mut scene = scene(24, 48);
    for n in 0..20 {
        scene.banish(&format!("203.0.113.{n}"));
        assert_eq!((scene.ban().probe.target.prefix_len(), scene.ban().grade), (32, Grade::Forgeable));
        scene.banish(&format!("2001:db8:9:{n:x}::1"));
        assert_eq!(scene.ban().probe.target.prefix_len(), 64);
    }
    assert_eq!(banish(&mut scene, &["203.0.113.100"]), target("203.0.113.100"), "forty that do not count");
    banish(&mut scene, &["203.0.113.101", "203.0.113.102", "203.0.113.103"]);
    scene.banish("203.0.113.104");
    assert_eq!(scene.ban().probe.target, target("203.0.113.104"), "four that count, but the fifth may be forged");
    assert_eq!(banish(&mut scene, &["203.0.113.105"]), network("203.0.113.0/24"));
    assert_eq!(scene.ban().grade, Grade::Proven);
}

#[test]
fn lifted_ban_does_not_count_for_prefix() {
    let mut scene = scene(24, 64);
    banish(&mut scene, &FOUR);
    scene.engine.lift(target(FOUR[2]));
    assert_eq!(banish(&mut scene, &[FIFTH]), target(FIFTH));
    assert_eq!(banish(&mut scene, &["203.0.113.10"]), network("203.0.113.0/24"));
}

#[test]
fn lifted_network_ban_needs_new_evidence() {
    let mut scene = scene(24, 64);
    banish(&mut scene, &FOUR);
    banish(&mut scene, &[FIFTH]);
    assert!(scene.engine.lift(network("203.0.113.0/24")));
    assert_eq!(scene.syn(FOUR[0], 80), Repeated, "its own ban is still in force");
    assert_eq!(
        banish(&mut scene, &["203.0.113.10", "203.0.113.11", "203.0.113.12", "203.0.113.13"]),
        target("203.0.113.13")
    );
    assert_eq!(banish(&mut scene, &["203.0.113.14"]), network("203.0.113.0/24"));
}

#[test]
fn earlier_network_ban_is_recognised() {
    let mut scene = Scene::new();
    let left = Expiry::After(Duration::from_secs(100));
    ["203.0.113.8/30", "2001:db8:9::/48"].into_iter().for_each(|text| scene.adopt(network(text), left));
    assert_eq!((scene.syn("203.0.113.11", 21), scene.syn("2001:db8:9:77::1", 21)), (Repeated, Repeated));
    assert_eq!((scene.syn("203.0.113.12", 21), scene.syn("2001:db8:a::1", 21)), (Probe(1), Probe(1)));
    let mut bans: Vec<_> = scene.engine.bans().map(|ban| ban.target.to_string()).collect();
    bans.sort_unstable();
    assert_eq!(bans, ["2001:db8:9::/48", "203.0.113.8/30"]);
    assert_eq!(scene.after(101.0).syn("203.0.113.11", 21), Probe(1));
    scene.adopt(network("198.51.100.0/28"), Expiry::Never);
    assert_eq!((scene.syn(SCANNER, 21), scene.syn("198.51.100.16", 21)), (Repeated, Probe(1)));
    scene.engine.lift_all();
    assert_eq!(scene.syn(SCANNER, 21), Probe(1));
}

#[test]
fn link_local_neighbours_get_no_prefix_ban() {
    let mut scene = scene(24, 48);
    for n in 1..30 {
        assert_eq!(banish(&mut scene, &[&format!("fe80::{n}")]).prefix_len(), 128);
    }
    assert_eq!(scene.syn("::ffff:192.0.2.9", 21), Ignored(IgnoreReason::NoSource));
}
