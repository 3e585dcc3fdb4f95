//! Tests the acceptance of reports with times chosen by the tests.

use proptest::prelude::*;

use super::*;

const START: u64 = 100_000;

fn at(seconds: u64) -> Timestamp {
    Timestamp::at(Duration::from_secs(START + seconds))
}

fn rules() -> FleetAccept {
    FleetAccept::default()
}

fn acceptance(rules: FleetAccept) -> Acceptance {
    let mut acceptance = Acceptance::new(rules, "here".to_owned());
    acceptance.end_scan();
    acceptance
}

fn report(author: &str, target: &str) -> FleetReport {
    FleetReport {
        author: author.to_owned(),
        target: target.to_owned(),
        remaining_s: 3_600,
        grade: Grade::Proven,
        distinct_ports: 5,
        class: "connect".to_owned(),
        sequence: 1,
    }
}

fn forgeable(author: &str, target: &str, remaining_s: u64) -> FleetReport {
    FleetReport { grade: Grade::Forgeable, remaining_s, ..report(author, target) }
}

fn never(_: IpNet) -> Option<String> {
    None
}

/// Judges a report; returns the end of the ban in seconds from the start and the step, or another result.
fn judged(
    acceptance: &mut Acceptance,
    seconds: u64,
    report: &FleetReport,
) -> Result<(u64, Option<BanChange>), Result<ReportVerdict, ReportRefusal>> {
    match acceptance.judge_report(at(seconds), report, never) {
        Ok(ReportVerdict::Blocks { until, step, .. }) => Ok((until.since(at(0)).as_secs(), step)),
        other => Err(other),
    }
}

const ONE: &str = "192.0.2.7";

#[test]
fn proven_ban_takes_two_authors() {
    let mut two = acceptance(rules());
    assert_eq!(judged(&mut two, 0, &report("a", ONE)), Err(Ok(ReportVerdict::Waits { authors: 1 })));
    assert_eq!(judged(&mut two, 1, &report("a", ONE)), Err(Ok(ReportVerdict::Waits { authors: 1 })), "the same again");
    let short = FleetReport { remaining_s: 600, ..report("b", ONE) };
    assert_eq!(
        judged(&mut two, 2, &short),
        Ok((602, Some(BanChange::New))),
        "the ban lasts as long as two reports are valid"
    );
    let mut one = acceptance(FleetAccept { single: true, ..rules() });
    assert_eq!(judged(&mut one, 0, &report("a", ONE)), Ok((3_600, Some(BanChange::New))));
}

#[test]
fn ban_is_renewed_while_reports_stand() {
    let mut all = acceptance(FleetAccept { single: true, ..rules() });
    assert_eq!(judged(&mut all, 0, &report("a", ONE)), Ok((3_600, Some(BanChange::New))));
    assert_eq!(judged(&mut all, 30, &report("a", ONE)), Ok((3_600, None)), "the kernel's set is changed rarely");
    assert_eq!(judged(&mut all, 600, &report("a", ONE)), Ok((4_200, Some(BanChange::Longer))));
    let longest = FleetReport { remaining_s: 14_400, ..report("a", ONE) };
    assert_eq!(judged(&mut all, 700, &longest), Ok((15_100, Some(BanChange::Longer))));
    let shorter = FleetReport { remaining_s: 1, ..report("a", ONE) };
    assert_eq!(judged(&mut all, 800, &shorter), Ok((15_100, None)), "no report shortens a ban");
    all.expire(at(15_000));
    assert_eq!(all.bans(at(15_000)).count(), 1);
    all.expire(at(15_101));
    assert_eq!((all.bans(at(15_101)).count(), all.counts()), (0, (0, 0)));
}

#[test]
fn exempt_target_is_refused_and_dropped() {
    let mut all = acceptance(FleetAccept { single: true, ..rules() });
    let exempt = |network: IpNet| (network.to_string() == "192.0.2.7/32").then(|| "a gateway".to_owned());
    let refused = ReportRefusal::Exempt("a gateway".to_owned());
    assert_eq!(all.judge_report(at(0), &report("a", ONE), exempt), Err(refused));
    assert!(judged(&mut all, 0, &report("a", ONE)).is_ok() && judged(&mut all, 0, &report("a", "192.0.2.8")).is_ok());
    assert_eq!(all.drop_exempt(exempt), [BanTarget::containing(ONE.parse().unwrap())]);
    assert_eq!(all.bans(at(0)).count(), 1);
}

#[test]
fn wide_or_impossible_target_is_refused() {
    let mut all = acceptance(FleetAccept { single: true, ..rules() });
    for text in [
        "",
        "x",
        "0.0.0.0/0",
        "10.0.0.0/8",
        "192.0.2.0/31",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "169.254.1.1",
        "::/0",
        "2001:db8::/63",
        "2001:db8::/32",
        "::/64",
        "::",
        "fe80::1",
        "fe80::/64",
        "ff02::1",
        "64:ff9b::/96",
        "240.0.0.1",
        "192.0.2.7/33",
        "192.0.2.7,192.0.2.8",
    ] {
        assert_eq!(judged(&mut all, 0, &report("a", text)), Err(Err(ReportRefusal::NoTarget)), "{text}");
    }
    for (text, target) in [
        ("192.0.2.7/32", "192.0.2.7"),
        ("::ffff:192.0.2.8", "192.0.2.8"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::/64", "2001:db8:1:3::/64"),
        ("64:ff9b::cb00:7109", "64:ff9b::cb00:7109/128"),
    ] {
        let Ok(ReportVerdict::Blocks { target: found, .. }) = all.judge_report(at(0), &report("a", text), never) else {
            panic!("{text}")
        };
        assert_eq!(found.to_string(), target);
    }
}

#[test]
fn malformed_report_is_refused() {
    let mut all = acceptance(FleetAccept { single: true, ..rules() });
    let lasting = |remaining_s| FleetReport { remaining_s, ..report("a", ONE) };
    assert_eq!(judged(&mut all, 0, &lasting(0)), Err(Err(ReportRefusal::NoTime)));
    assert_eq!(judged(&mut all, 0, &lasting(14_401)), Err(Err(ReportRefusal::TooLong)));
    assert_eq!(judged(&mut all, 0, &lasting(u64::MAX)), Err(Err(ReportRefusal::TooLong)));
    assert_eq!(judged(&mut all, 0, &report("here", ONE)), Err(Err(ReportRefusal::OwnName)));
    assert_eq!(judged(&mut all, 0, &report("A b", ONE)), Err(Err(ReportRefusal::NoAuthor)));
    let odd = FleetReport { class: "attackalert:".to_owned(), ..report("a", ONE) };
    assert_eq!(judged(&mut all, 0, &odd), Err(Err(ReportRefusal::NoClass)));
    assert!(judged(&mut all, 0, &lasting(14_400)).is_ok());
}

#[test]
fn forgeable_evidence_needs_configured_authors() {
    let mut off = acceptance(FleetAccept { single: true, ..rules() });
    assert_eq!(judged(&mut off, 0, &forgeable("a", ONE, 60)), Err(Err(ReportRefusal::Forgeable)));
    let few = FleetReport { distinct_ports: 4, remaining_s: 9_000, ..report("a", ONE) };
    assert_eq!(judged(&mut off, 0, &few), Err(Err(ReportRefusal::TooFewPorts)));
    let mut three = acceptance(FleetAccept { forgeable_authors: 3, ..rules() });
    assert_eq!(judged(&mut three, 0, &forgeable("a", ONE, 9_000)), Err(Ok(ReportVerdict::Waits { authors: 2 })));
    assert_eq!(
        judged(&mut three, 0, &few),
        Err(Ok(ReportVerdict::Waits { authors: 2 })),
        "too few ports are not proven"
    );
    assert_eq!(judged(&mut three, 0, &forgeable("b", ONE, 9_000)), Err(Ok(ReportVerdict::Waits { authors: 1 })));
    assert_eq!(
        judged(&mut three, 100, &forgeable("c", ONE, 9_000)),
        Ok((3_700, Some(BanChange::New))),
        "an hour at most"
    );
    assert_eq!(judged(&mut three, 3_000, &forgeable("c", ONE, 9_000)), Ok((3_700, None)), "however often renewed");
    assert_eq!(judged(&mut three, 3_701, &forgeable("c", ONE, 9_000)), Err(Err(ReportRefusal::HourOver)));
    for author in ["d", "e"] {
        let _ = judged(&mut three, 3_800, &report(author, ONE));
    }
    assert_eq!(three.bans(at(3_900)).count(), 1, "the proven reports count on their own");
}

#[test]
fn author_above_limit_is_ignored_and_named() {
    let mut all = acceptance(FleetAccept { single: true, ..rules() });
    let target = |number: u32| format!("198.51.{}.{}", number / 250, number % 250);
    let accepted =
        (0..5_000).filter(|number| judged(&mut all, 0, &report("mallory", &target(number % 60_000))).is_ok()).count();
    assert_eq!(accepted, 30);
    assert_eq!(
        all.authors.newly_above_limit(at(0)).iter().map(|one| (&*one.author, one.for_s)).collect::<Vec<_>>(),
        [("mallory", 3_600)]
    );
    assert!(all.authors.newly_above_limit(at(1)).is_empty(), "it is reported once");
    assert_eq!(all.authors.ignored(at(1)).next().map(|one| one.for_s), Some(3_599));
    assert_eq!(
        judged(&mut all, 1, &report("mallory", &target(0))),
        Err(Err(ReportRefusal::AuthorIgnored)),
        "nor is it renewed"
    );
    assert!(judged(&mut all, 1, &report("b", ONE)).is_ok(), "other authors are not affected");
    assert!(judged(&mut all, 3_700, &report("mallory", ONE)).is_ok(), "an hour later it is accepted again");
}

#[test]
fn ceiling_holds_for_all_authors_together() {
    let mut all = acceptance(FleetAccept { single: true, max_bans_per_hour: 50, ..rules() });
    let verdicts = (0..20_u32).flat_map(|author| (0..20_u32).map(move |last| (author, last)));
    let accepted = verdicts
        .filter(|(author, last)| {
            judged(&mut all, 0, &report(&format!("m-{author}"), &format!("198.51.{author}.{last}"))).is_ok()
        })
        .count();
    assert_eq!(accepted, 50);
    let mut small = acceptance(FleetAccept { single: true, size: 3, ..rules() });
    for (last, fits) in [(1, true), (2, true), (3, true), (4, false)] {
        let verdict = judged(&mut small, 0, &report("a", &format!("192.0.2.{last}")));
        assert_eq!(verdict.is_ok(), fits, "{verdict:?}");
    }
    assert!(judged(&mut small, 0, &report("a", "2001:db8::/64")).is_ok(), "the other set has room");
    small.expire(at(3_601));
    assert!(judged(&mut small, 3_601, &report("a", "192.0.2.4")).is_ok(), "there is room again");
}

#[test]
fn late_joiner_accepts_four_hours() {
    let mut new = Acceptance::new(FleetAccept { single: true, ..rules() }, "here".to_owned());
    let accepted = |from: u32, new: &mut Acceptance| {
        (from..from + 200)
            .filter(|last| judged(new, 0, &report("a", &format!("198.51.{}.{}", last / 250, last % 250))).is_ok())
            .count()
    };
    assert_eq!(accepted(0, &mut new), 120);
    let named =
        |new: &mut Acceptance| new.authors.newly_above_limit(at(0)).iter().map(|one| one.for_s).collect::<Vec<_>>();
    assert_eq!(named(&mut new), [0], "it is reported, and its excess reports count later");
    assert_eq!(new.authors.ignored(at(0)).next().map(|one| one.excess), Some(80));
    new.end_scan();
    assert_eq!(accepted(200, &mut new), 0);
    assert_eq!(named(&mut new), [3_600], "now it is ignored");
}

#[test]
fn lift_lasts_while_reports_last() {
    let mut all = acceptance(FleetAccept { single: true, ..rules() });
    let target = BanTarget::containing(ONE.parse().unwrap());
    assert!(judged(&mut all, 0, &report("a", ONE)).is_ok());
    assert!(all.lift(at(10), target, LiftedBy::Host) && !all.lift(at(11), target, LiftedBy::Host));
    for hours in 0..20 {
        let longest = FleetReport { remaining_s: 14_400, ..report("b", ONE) };
        assert_eq!(judged(&mut all, hours * 3_600, &longest), Err(Err(ReportRefusal::Lifted)));
        all.expire(at(hours * 3_600));
    }
    all.expire(at(24 * 3_600));
    assert!(judged(&mut all, 24 * 3_600, &report("b", ONE)).is_ok(), "the lift ends four hours after the last report");
}

#[test]
fn restart_adopts_existing_bans() {
    let mut all = acceptance(rules());
    let element = |text: &str| BanTarget::from_element(text.parse().unwrap());
    let after = |seconds| Expiry::After(Duration::from_secs(seconds));
    let found = [
        (element(ONE), after(60)),
        (element("192.0.2.8"), Expiry::Never),
        (element("192.0.2.9"), after(14_401)),
        (element("2001:db8::5"), after(60)),
        (element("2001:db8::"), after(60)),
        (element("192.0.2.10"), after(60)),
        (element("192.0.2.11"), after(60)),
    ];
    let exempt = |network: IpNet| (network.to_string() == "192.0.2.10/32").then(String::new);
    all.lift(at(0), element("192.0.2.11"), LiftedBy::Host);
    let refused = all.adopt(at(0), found.into_iter(), exempt);
    assert_eq!(refused, ["192.0.2.8", "192.0.2.9", "2001:db8::5", "192.0.2.10", "192.0.2.11"].map(element));
    assert_eq!(all.counts(), (2, 0));
    assert_eq!(judged(&mut all, 1, &report("a", ONE)), Ok((60, None)), "a single report does not end the ban");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// No sequence of reports causes a ban of an exempt or wide target, a ban longer than four hours, or more bans than
    /// the limits permit.
    #[test]
    fn no_sequence_of_reports_breaks_a_rule(
        steps in prop::collection::vec((0_u64..900, 0_u8..6, 0_u8..40, 0_u64..20_000, any::<bool>(), 0_u32..8, any::<bool>()), 1..400),
        single in any::<bool>(),
        forgeable_authors in prop_oneof![Just(0_u32), 2_u32..4],
    ) {
        let rules = FleetAccept { single, forgeable_authors, max_per_author_per_hour: 5, max_bans_per_hour: 12, size: 20 };
        let mut all = acceptance(rules);
        let exempt = |network: IpNet| network.to_string().starts_with("192.0.2.3").then(|| "allowed".to_owned());
        let (mut now, mut fresh, mut brought) = (0, Vec::new(), BTreeMap::<(u8, u8), u64>::new());
        for (wait, author, last, remaining_s, proven, distinct_ports, lift) in steps {
            now += wait;
            all.expire(at(now));
            let target = BanTarget::V4([192, 0, 2, last].into());
            if lift && last % 7 == 0 {
                all.lift(at(now), target, LiftedBy::Host);
            }
            let grade = if proven { Grade::Proven } else { Grade::Forgeable };
            let report = FleetReport {
                grade,
                distinct_ports,
                remaining_s,
                ..report(&format!("a-{author}"), &format!("192.0.2.{last}"))
            };
            let known = all.entry(target).map_or(0, |entry| entry.reports.len());
            let verdict = all.judge_report(at(now), &report, exempt);
            if all.entry(target).map_or(0, |entry| entry.reports.len()) > known {
                brought.entry((author, last)).or_insert(now);
            }
            if let Ok(ReportVerdict::Blocks { until, step, .. }) = verdict {
                prop_assert!(until.since(at(now)) <= MAX_REMAINING);
                let authors = all.entry(target).map_or(0, |entry| entry.reports.len());
                if step == Some(BanChange::New) {
                    fresh.push(now);
                    prop_assert!(authors > usize::from(!single));
                    prop_assert!(forgeable_authors > 0 || proven && distinct_ports >= 5);
                }
            }
            prop_assert!(all.bans(at(now)).all(|(target, _)| exempt(IpNet::new(target.element(), 32).unwrap()).is_none()));
            prop_assert!(all.bans(at(now)).count() <= 20);
        }
        for end in &fresh {
            prop_assert!(fresh.iter().filter(|one| **one <= *end && end - **one < 3_600).count() <= 12);
        }
    }
}
