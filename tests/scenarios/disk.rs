//! Tests a full disk and a damaged ledger at run time: the program reports it, keeps blocking, and records the kernel's
//! bans as soon as the ledger works again.

use std::net::IpAddr;
use std::os::unix::fs::FileExt as _;

use portsentry::ledger::DATABASE;

use crate::support::ledger;
use netns_lab::daemon::Daemon;
use netns_lab::{Lab, SmallDisk, soon};

/// A small file system over the state directory.
fn small_disk(lab: &Lab) -> SmallDisk {
    std::fs::create_dir(lab.path("state")).unwrap();
    SmallDisk::mount(&lab.path("state"), "1m")
}

/// The targets of the bans in force, from the ledger.
fn recorded(lab: &Lab) -> Vec<IpAddr> {
    let mut addresses: Vec<_> = ledger(lab).iter().map(|entry| entry.ban.target.element()).collect();
    addresses.sort();
    addresses
}

fn expect_recorded(lab: &Lab, addresses: &[IpAddr]) {
    assert!(soon(|| recorded(lab) == addresses), "{:?}, not {addresses:?}", recorded(lab));
}

fn start(lab: &Lab) -> Daemon {
    Daemon::start_configured(lab, "expire = \"1h\"\n", &[])
}

#[test]
fn filling_disk_is_reported_and_written_later() {
    let lab = Lab::new(&["first", "second", "third"]);
    let disk = small_disk(&lab);
    let daemon = start(&lab);
    let first = lab.provoke_ban("first");
    expect_recorded(&lab, &[first]);
    disk.fill();
    let second = lab.provoke_ban("second");
    let line = daemon.expect_line("adminalert: ERROR: cannot write to ");
    assert!(line.contains("disk is full") && line.contains("blocking continues"), "{line}");
    let third = lab.provoke_ban("third");
    assert_eq!(lab.banned(), [first, second, third]);
    disk.empty();
    expect_recorded(&lab, &[first, second, third]);
    daemon.stop();
}

#[test]
fn full_disk_at_start_keeps_bans() {
    let lab = Lab::new(&["first"]);
    let disk = small_disk(&lab);
    disk.fill();
    let daemon = start(&lab);
    daemon.expect_line("blocking continues, but bans do not survive a reboot");
    let first = lab.provoke_ban("first");
    daemon.stop();
    disk.empty();
    let daemon = start(&lab);
    daemon.expect_line("adminalert: bans that were in the kernel's sets at the start and stay: 1");
    expect_recorded(&lab, &[first]);
    daemon.stop();
}

#[test]
fn damaged_ledger_is_quarantined_and_rebuilt() {
    for cut in [false, true] {
        let lab = Lab::new(&["first", "second"]);
        let daemon = start(&lab);
        let first = lab.provoke_ban("first");
        expect_recorded(&lab, &[first]);
        daemon.stop();
        let path = lab.path("state").join(DATABASE);
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        let length = file.metadata().unwrap().len();
        if cut {
            file.set_len(length / 2 - 100).unwrap();
        } else {
            let mut noise = vec![0; usize::try_from(length).unwrap()];
            getrandom::fill(&mut noise).unwrap();
            file.write_all_at(&noise, 0).unwrap();
        }
        let daemon = start(&lab);
        daemon.expect_line("adminalert: ERROR: the ledger was damaged (");
        daemon.expect_line("ledger.sqlite.corrupt-");
        assert_eq!(lab.banned(), [first]);
        let second = lab.provoke_ban("second");
        expect_recorded(&lab, &[first, second]);
        daemon.stop();
        // The new ledger is complete enough for a reboot.
        lab.nft("delete table inet portsentry");
        let daemon = start(&lab);
        daemon.expect_line("bans restored from the ledger with their remaining time: 2");
        assert_eq!(lab.banned(), [first, second]);
        daemon.stop();
    }
}

#[test]
fn ledger_damaged_at_runtime_loses_no_ban() {
    for removed in [false, true] {
        let lab = Lab::new(&["first", "second", "third"]);
        let daemon = start(&lab);
        let first = lab.provoke_ban("first");
        expect_recorded(&lab, &[first]);
        let path = lab.path("state");
        if removed {
            for suffix in ["", "-wal", "-shm"] {
                let _ = std::fs::remove_file(path.join(format!("{DATABASE}{suffix}")));
            }
        } else {
            for suffix in ["", "-wal"] {
                let file = std::fs::File::options().write(true).open(path.join(format!("{DATABASE}{suffix}"))).unwrap();
                let length = usize::try_from(file.metadata().unwrap().len()).unwrap();
                file.write_all_at(&vec![0xa5; length], 0).unwrap();
            }
        }
        let second = lab.provoke_ban("second");
        assert_eq!(lab.banned(), [first, second], "blocking does not wait for the ledger");
        let third = lab.provoke_ban("third");
        if removed {
            daemon.expect_line("the ledger");
        }
        daemon.stop();
        let daemon = start(&lab);
        expect_recorded(&lab, &[first, second, third]);
        assert_eq!(lab.banned(), [first, second, third]);
        daemon.stop();
    }
}
