//! Tests that the rules never drop protected sources.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use portsentry::enforce::nft::Nft;
use simulation::chance::Chance;

use super::{installed, listing, nft, seconds, target};

#[test]
fn protecting_replaces_and_merges_prefixes() {
    installed(|sets| {
        let prefixes = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        sets.replace_allow_list(&prefixes(&[
            "10.0.0.0/8",
            "10.1.0.0/16",
            "192.0.2.1/32",
            "2001:db8::/32",
            "2001:db8:1::/48",
        ]))
        .unwrap();
        assert!(nft("list set inet portsentry allowed").contains("elements = { 10.0.0.0/8, 192.0.2.1 }"));
        assert!(nft("list set inet portsentry allowed6").contains("elements = { 2001:db8::/32 }"));
        // The same prefixes again, overlapping ones, adjacent ones, and both ends of the address space.
        let next = ["10.0.0.0/8", "10.0.0.0/24", "11.0.0.0/25", "0.0.0.0/8", "255.255.255.255/32", "::/1", "ff00::/8"];
        sets.replace_allow_list(&prefixes(&next)).unwrap();
        let allowed = nft("list set inet portsentry allowed");
        assert!(allowed.contains("0.0.0.0/8, 10.0.0.0/8") && allowed.contains("11.0.0.0/25"), "{allowed}");
        assert!(allowed.contains("255.255.255.255") && !allowed.contains("192.0.2.1"), "{allowed}");
        let allowed6 = nft("list set inet portsentry allowed6");
        assert!(allowed6.contains("::/1") && allowed6.contains("ff00::/8"), "{allowed6}");
        nft("add element inet portsentry allowed { 172.16.0.0/12 }");
        sets.replace_allow_list(&[]).unwrap();
        assert!(!listing().contains("elements"));
    });
}

#[test]
fn replacing_one_prefix_keeps_protection() {
    installed(|sets| {
        // With a step of two no prefix begins where the previous one ends.
        let lost = dropped(sets, 2, |sets, prefixes| sets.follow_allow_list(prefixes).unwrap());
        assert_eq!(lost, 0);
    });
}

#[test]
fn replacing_all_prefixes_keeps_protection() {
    installed(|sets| {
        let lost = dropped(sets, 1, |sets, prefixes| sets.replace_allow_list(prefixes).unwrap());
        // Older kernels do lose some packets, see docs/kernels.md.
        let most = if linux() >= (6, 15) { 0 } else { SENT / 100 };
        assert!(lost <= most, "{lost} of some {SENT}");
    });
}

/// Version of the kernel. This behaviour cannot be probed.
fn linux() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

const SENT: u32 = 20_000;

/// Sends from a source that is both protected and blocked while one prefix after another, `apart` steps apart, replaces
/// the previous one. Returns how many of about [`SENT`] packets are dropped.
fn dropped(sets: &mut Nft, apart: u8, mut replace: impl FnMut(&mut Nft, &[ipnet::IpNet])) -> u32 {
    let own: ipnet::IpNet = "127.0.0.0/8".parse().unwrap();
    sets.replace_allow_list(&[own]).unwrap();
    sets.block(&[(target("127.0.0.1"), seconds(600))]).unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (sent, done) = (AtomicU32::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        // A new thread starts in the namespace of its parent.
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
                sent.fetch_add(1, Ordering::Relaxed);
            }
        });
        let mut other = 0_u8;
        while sent.load(Ordering::Relaxed) < SENT {
            other = other.wrapping_add(apart);
            replace(sets, &[own, ipnet::Ipv4Net::new_assert([10, other, 0, 0].into(), 16).into()]);
        }
        done.store(true, Ordering::Relaxed);
    });
    let rules = nft("list chain inet portsentry prerouting");
    let counted = rules.split("ip saddr @blocked counter packets ").nth(1).and_then(|rest| rest.split(' ').next());
    counted.and_then(|number| number.parse().ok()).unwrap()
}

#[test]
fn thousands_of_prefixes_take_one_transaction() {
    installed(|sets| {
        let prefixes: Vec<_> = (0..5_000_u32)
            .map(|n| ipnet::Ipv4Net::new_assert((0x0a00_0000 + n * 512).into(), 24).into())
            .chain((0..2_000_u128).map(|n| ipnet::Ipv6Net::new_assert((n << 81).into(), 48).trunc().into()))
            .collect();
        for _ in 0..2 {
            sets.replace_allow_list(&prefixes).unwrap();
        }
        let count = |set| nft(&format!("list set inet portsentry {set}")).matches('/').count();
        assert_eq!(count("allowed"), 5_000);
        assert!(count("allowed6") > 0);
    });
}

#[test]
fn only_changes_are_sent() {
    installed(|sets| {
        // Adjacent and nested prefixes, both ends of the address space, and two halves of a larger prefix.
        let pool: Vec<ipnet::IpNet> = [
            "10.0.0.0/25",
            "10.0.0.128/25",
            "10.0.0.0/24",
            "10.0.1.0/24",
            "10.0.0.7/32",
            "192.0.2.1/32",
            "192.0.2.2/31",
            "0.0.0.0/8",
            "255.255.255.255/32",
            "2001:db8::/32",
            "2001:db8:1::/48",
            "2001:db9::/32",
            "ff00::/8",
            "::/16",
        ]
        .map(|text| text.parse().unwrap())
        .to_vec();
        let both = || ["allowed", "allowed6"].map(|set| nft(&format!("list set inet portsentry {set}")));
        let mut chance = Chance::new(1, "prefixes", 0);
        for _ in 0..60 {
            let chosen: Vec<_> = pool.iter().copied().filter(|_| chance.is(0.5)).collect();
            sets.follow_allow_list(&chosen).unwrap();
            let followed = both();
            sets.replace_allow_list(&chosen).unwrap();
            assert_eq!(followed, both(), "{chosen:?}");
        }
    });
}

#[test]
fn foreign_element_stays_until_it_conflicts() {
    installed(|sets| {
        let prefixes = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        let allowed = || nft("list set inet portsentry allowed");
        sets.follow_allow_list(&prefixes(&["10.0.0.0/8", "192.0.2.1/32"])).unwrap();
        nft("add element inet portsentry allowed { 172.16.0.0/12 }");
        sets.follow_allow_list(&prefixes(&["10.0.0.0/8", "192.0.2.9/32"])).unwrap();
        assert!(allowed().contains("elements = { 10.0.0.0/8, 172.16.0.0/12,\n"), "{}", allowed());
        assert!(allowed().contains("192.0.2.9 }"), "{}", allowed());
        // An element that is already gone, and one inside a foreign element: both make the update rewrite the whole
        // set.
        nft("delete element inet portsentry allowed { 192.0.2.9 }");
        sets.follow_allow_list(&prefixes(&["10.0.0.0/8"])).unwrap();
        assert!(allowed().contains("elements = { 10.0.0.0/8 }"), "{}", allowed());
        nft("add element inet portsentry allowed { 172.16.0.0/12 }");
        sets.follow_allow_list(&prefixes(&["10.0.0.0/8", "172.16.5.0/24"])).unwrap();
        assert!(allowed().contains("elements = { 10.0.0.0/8, 172.16.5.0/24 }"), "{}", allowed());
    });
}
