//! Tests that single operations stay fast with a million bans.

use std::net::Ipv4Addr;
use std::time::Instant;

use portsentry::enforce::nft::{BlockError, Failure, RulesetSpec};
use portsentry::types::{BanTarget, Expiry};

use super::{installed_with, nearly, seconds};

const SIZE: u32 = 1 << 20;

fn ban(number: u32) -> (BanTarget, Expiry) {
    // Scattered addresses, as in real traffic; the factor is odd, so no two are equal.
    (BanTarget::V4(Ipv4Addr::from_bits(number.wrapping_mul(0x9e37_79b1))), seconds(86_400))
}

#[test]
fn million_bans_are_held_and_bounded() {
    installed_with(RulesetSpec { size: SIZE, ..RulesetSpec::default() }, |sets| {
        let start = Instant::now();
        let mut bans = Vec::with_capacity(50_000);
        for first in (0..1_000_000).step_by(50_000) {
            bans.clear();
            bans.extend((first..first + 50_000).map(ban));
            sets.block(&bans).unwrap();
        }
        println!("a million bans: {:?}", start.elapsed());

        let start = Instant::now();
        let (one_more, _) = ban(1_000_000);
        assert_eq!(sets.table.time_left(one_more).unwrap(), None);
        sets.block(&[ban(1_000_000)]).unwrap();
        assert!(nearly(sets.table.time_left(one_more).unwrap(), 86_400));
        sets.block(&[(one_more, seconds(60))]).unwrap();
        assert!(nearly(sets.table.time_left(one_more).unwrap(), 60), "a ban among a million changes");
        sets.lift(&[one_more]).unwrap();
        let sample: Vec<_> = (0..=1_000_000).step_by(1_000).map(|number| ban(number).0).collect();
        assert_eq!(sets.table.missing(&sample).unwrap(), [one_more]);
        println!("five single changes and a sample of a thousand: {:?}", start.elapsed());

        let start = Instant::now();
        for first in (1_000_000..SIZE).step_by(10_000) {
            sets.block(&(first..SIZE.min(first + 10_000)).map(ban).collect::<Vec<_>>()).unwrap();
        }
        let Err(BlockError::Failed { asked: 2, failed }) = sets.block(&[ban(SIZE), ban(7)]) else {
            panic!("it has room")
        };
        assert_eq!(failed.len(), 1, "an existing ban can be extended in a full set");
        assert!(matches!(failed[0].reason, Failure::Full { set: "blocked", size: SIZE }), "{failed:?}");
        sets.lift(&[ban(7).0]).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        sets.block(&[ban(SIZE)]).unwrap();
        println!("filled to the last: {:?}", start.elapsed());
    });
}
