//! Tests commands as real processes: their arguments and environment, how they end, and how the backend thread reacts.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use portsentry::config::Run;
use portsentry::enforce::command::ExitOutcome;
use portsentry::enforce::slow_backends::{Adopted, BackendEvent, CommandPhase, SlowQueue, Stopped, Task};
use portsentry::enforce::{BanContext, InlineBackend};
use portsentry::types::{Backend, Backends, BanTarget, Expiry};
use tempfile::TempDir;

use super::{Bench, command, context, hosts_deny};
use netns_lab::{TIMEOUT, slowness, within};

const RUN: [Backend; 1] = [Backend::Command];

/// A time limit of commands that hang. On a busy machine too, a script has started its programs by then.
fn long_enough() -> Duration {
    Duration::from_secs(3) + Duration::from_secs(1) * slowness()
}

/// The shell command `script` with these arguments, counted from 1.
fn shell(script: &str, arguments: &[&str]) -> Vec<String> {
    let words = ["/bin/sh", "-c", script, "sh"].into_iter().chain(arguments.iter().copied());
    words.map(str::to_owned).collect()
}

fn run(script: &str) -> Run {
    Run { command: shell(script, &["$TARGET$"]), ..Run::default() }
}

fn with(run: Run) -> Bench {
    run.check().unwrap();
    unchecked(run)
}

fn unchecked(run: Run) -> Bench {
    Bench::start(vec![command(run)])
}

/// The report about the next command.
struct RanCommand {
    context: BanContext,
    phase: CommandPhase,
    outcome: ExitOutcome,
    output: String,
    took: Duration,
    attempt: u32,
    again: Option<Duration>,
}

fn ran(bench: &Bench) -> RanCommand {
    match bench.next() {
        BackendEvent::Ran { context, phase, outcome, output, took, attempt, again, .. } => {
            RanCommand { context, phase, outcome, output, took, attempt, again }
        }
        other => panic!("no command: {other:?}"),
    }
}

/// A file that commands write to.
fn output_file() -> (TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("note").to_str().unwrap().to_owned();
    (directory, path)
}

fn lines(path: &str) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// True if the process exists and is not a zombie.
fn is_alive(process: &str) -> bool {
    let status = fs::read_to_string(Path::new("/proc").join(process.trim()).join("stat")).unwrap_or_default();
    status.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
}

/// The numbers of the open files that every started program inherits.
fn inherited() -> Vec<String> {
    let mut numbers: Vec<u32> = fs::read_dir("/proc/self/fdinfo")
        .unwrap()
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            let info = fs::read_to_string(&path).ok()?;
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?.trim().to_owned();
            // O_CLOEXEC.
            let stays = u32::from_str_radix(&flags, 8).unwrap() & 0o2_000_000 == 0;
            stays.then(|| path.file_name().unwrap().to_str().unwrap().parse().unwrap())
        })
        .collect();
    numbers.sort_unstable();
    numbers.iter().map(u32::to_string).collect()
}

#[test]
fn command_gets_only_arguments_and_clean_environment() {
    let mut settings = run("");
    let script = "printf '<%s>' \"$@\"; echo; env | sort; pwd; readlink /proc/self/fd/0; ls -1v /proc/$$/fd; \
                  test $(cut -d ' ' -f 5 /proc/$$/stat) = $$ && echo leads its group";
    let arguments = ["$TARGET$", "$PORT$ $MODE$", "a;b `c` $(d) $REASON$", "$$TARGET$"];
    settings.command = shell(script, &arguments);
    let bench = with(settings);
    // The process that started the tests may leave files open; those of this program are not inherited.
    let inherited = inherited();
    let context = BanContext { expiry: Expiry::Never, ..context("2001:db8::7", 60) };
    bench.block(context, &RUN);
    let report = ran(&bench);
    assert_eq!(report.outcome, ExitOutcome::Exited(0), "{}", report.output);
    let lines: Vec<&str> = report.output.split("\\n").collect();
    assert_eq!(lines[0], "<2001:db8::/64><23 atcp><a;b `c` $(d) TCP SYN/Normal scan><$2001:db8::/64>");
    let environment: Vec<&str> = lines[1..].iter().copied().take_while(|line| line.contains('=')).collect();
    let expected = [
        "LANG=C",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PORTSENTRY_EXPIRES=never",
        "PORTSENTRY_MODE=atcp",
        "PORTSENTRY_PORT=23",
        "PORTSENTRY_PROTOCOL=tcp",
        "PORTSENTRY_REASON=TCP SYN/Normal scan",
        "PORTSENTRY_SOURCE=2001:db8::7",
        "PORTSENTRY_TARGET=2001:db8::/64",
        // Set by the shell.
        "PWD=/",
    ];
    let environment: Vec<&str> = environment.into_iter().filter(|line| !line.starts_with("_=")).collect();
    assert_eq!(environment, expected);
    let rest = lines[lines.len() - inherited.len() - 3..].join(" ");
    assert_eq!(rest, format!("/ /dev/null {} leads its group", inherited.join(" ")));
}

#[test]
fn failing_command_is_reported_and_retried() {
    let (_directory, path) = output_file();
    // Fails once for 192.0.2.7.
    let script =
        format!("echo $1 >> {path}; echo oops >&2; test $1 != 192.0.2.7 -o $(grep -c 2.7 {path}) -gt 1 || exit 3");
    let bench = with(Run { at_once: 1, ..run(&script) });
    bench.block(context("192.0.2.7", 60), &RUN);
    bench.block(context("192.0.2.8", 60), &RUN);
    let first = ran(&bench);
    assert_eq!((first.outcome, first.attempt, first.again), (ExitOutcome::Exited(3), 1, Some(Duration::from_secs(1))));
    assert_eq!(first.output, "oops");
    assert_eq!(ran(&bench).outcome, ExitOutcome::Exited(0));
    let second = ran(&bench);
    assert_eq!((second.outcome, second.attempt, second.again), (ExitOutcome::Exited(0), 2, None));
    assert_eq!(lines(&path), ["192.0.2.7", "192.0.2.8", "192.0.2.7"]);
}

#[test]
fn command_is_not_retried_after_expiry() {
    let bench = with(run("exit 1"));
    bench.block(context("192.0.2.7", 60), &RUN);
    assert_eq!(ran(&bench).again, Some(Duration::from_secs(1)));
    bench.put(Task::Release { targets: vec![context("192.0.2.7", 60).target] });
    bench.expect_no_event(Duration::from_millis(1_500));
}

#[test]
fn hanging_command_ends_with_its_children() {
    let (_directory, path) = output_file();
    let script =
        format!("sleep 1000 & echo $! >> {path}; (sleep 1000 & echo $! >> {path}; wait) & echo $$ >> {path}; wait");
    let timeout = long_enough();
    let bench = with(Run { timeout, ..run(&script) });
    bench.block(context("192.0.2.7", 60), &RUN);
    let report = ran(&bench);
    assert_eq!(report.outcome, ExitOutcome::TimedOut);
    assert!(report.took >= timeout && report.took < timeout * 20, "{:?}", report.took);
    let processes = lines(&path);
    assert_eq!(processes.len(), 3);
    // A grandchild is reaped by the process that adopts it.
    let gone = within(TIMEOUT, || (!processes.iter().any(|process| is_alive(process))).then_some(()));
    assert!(gone.is_some(), "{processes:?}");
}

#[test]
fn command_ignoring_sigterm_is_killed() {
    let (_directory, path) = output_file();
    let script = format!("trap '' TERM; echo $$ >> {path}; while :; do sleep 0.05; done");
    let timeout = long_enough();
    let bench = with(Run { timeout, ..run(&script) });
    bench.block(context("192.0.2.7", 60), &RUN);
    let report = ran(&bench);
    assert_eq!(report.outcome, ExitOutcome::TimedOut);
    assert!(report.took >= timeout + Duration::from_secs(2), "the command had two seconds to end: {:?}", report.took);
    assert!(!is_alive(&lines(&path)[0]));
}

#[test]
fn timeout_kills_children_of_ended_leader() {
    let (_directory, path) = output_file();
    let script = format!("(trap '' TERM; sh -c 'echo $$ >> {path}; exec sleep 1000') & wait");
    let bench = with(Run { timeout: long_enough(), ..run(&script) });
    bench.block(context("192.0.2.7", 60), &RUN);
    assert_eq!(ran(&bench).outcome, ExitOutcome::TimedOut);
    let process = lines(&path).remove(0);
    let gone = within(TIMEOUT, || (!is_alive(&process)).then_some(()));
    assert!(gone.is_some(), "{process}");
}

#[test]
fn background_children_survive_their_command() {
    let (_directory, path) = output_file();
    let script = format!("(sleep {}; echo done >> {path}) & echo started", 5 * slowness());
    let bench = with(run(&script));
    bench.block(context("192.0.2.7", 60), &RUN);
    let report = ran(&bench);
    assert_eq!((report.outcome, report.output.as_str()), (ExitOutcome::Exited(0), "started"));
    assert!(report.took < Duration::from_secs(4) * slowness(), "{:?}", report.took);
    assert!(within(TIMEOUT, || (lines(&path) == ["done"]).then_some(())).is_some());
}

#[test]
fn excessive_output_ends_command() {
    let bench = with(run("exec yes \"$(printf '\\033[31mred')\""));
    bench.block(context("192.0.2.7", 60), &RUN);
    let report = ran(&bench);
    // Its pipe is closed at the size limit.
    assert_eq!(report.outcome, ExitOutcome::Killed(13));
    assert!(report.took < Duration::from_secs(30) * slowness(), "{:?}", report.took);
    assert!(report.output.starts_with("\\u{1b}[31mred\\n\\u{1b}[31mred\\n") && report.output.len() == 4_096);
    assert!(!report.output.chars().any(char::is_control));
}

#[test]
fn unstartable_command_is_reported() {
    let (directory, _) = output_file();
    let program = directory.path().join("gone");
    let settings = Run { command: vec![program.to_str().unwrap().to_owned()], ..Run::default() };
    let bench = unchecked(settings);
    bench.block(context("192.0.2.7", 60), &RUN);
    let report = ran(&bench);
    assert!(
        matches!(&report.outcome, ExitOutcome::NotStarted(error) if error.contains("No such file")),
        "{}",
        report.outcome
    );
    assert_eq!(report.again, Some(Duration::from_secs(1)));
}

#[test]
fn expire_command_runs_after_ban_only() {
    let (_directory, path) = output_file();
    let settings = Run {
        command: shell(&format!("echo begin $1 >> {path}; sleep 0.7; echo end $1 >> {path}"), &["$TARGET$"]),
        expire_command: shell(&format!("echo over $1 $2 >> {path}"), &["$TARGET$", "$PORT$"]),
        ..Run::default()
    };
    let bench = with(settings);
    let lifted = context("192.0.2.7", 3_600);
    bench.block(lifted, &RUN);
    // While the first command still runs.
    assert!(within(TIMEOUT, || (!lines(&path).is_empty()).then_some(())).is_some(), "the command did not start");
    bench.put(Task::Release { targets: vec![lifted.target] });
    assert_eq!(ran(&bench).phase, CommandPhase::Block);
    let release = ran(&bench);
    assert_eq!((release.phase, release.context), (CommandPhase::Release, lifted));
    assert_eq!(lines(&path), ["begin 192.0.2.7", "end 192.0.2.7", "over 192.0.2.7 23"]);
    bench.block(context("192.0.2.8", 1), &RUN);
    assert_eq!([ran(&bench).phase, ran(&bench).phase], [CommandPhase::Block, CommandPhase::Release]);
    // A ban from before the start.
    let old = context("192.0.2.9", 3_600);
    let left = Expiry::After(Duration::from_millis(1_000));
    let adopted = Adopted { context: old, backends: Backend::Command.into(), done: Backend::Command.into(), left };
    bench.put(Task::Adopt { bans: vec![adopted] });
    let release = ran(&bench);
    assert_eq!((release.phase, release.context), (CommandPhase::Release, old));
    // Another backend blocked it until now.
    let moved = context("192.0.2.10", 3_600);
    bench.put(Task::Adopt {
        bans: vec![Adopted { context: moved, backends: Backend::Command.into(), done: Backends::default(), left }],
    });
    let phases = [ran(&bench), ran(&bench)].map(|ran| (ran.phase, ran.context));
    assert_eq!(phases, [(CommandPhase::Block, moved), (CommandPhase::Release, moved)]);
}

#[test]
fn ended_ban_is_undone_unless_banned_again() {
    let (_directory, path) = output_file();
    let bench = with(Run {
        command: shell(&format!("echo begin $1 >> {path}"), &["$TARGET$"]),
        expire_command: shell(&format!("echo over $1 >> {path}"), &["$TARGET$"]),
        ..Run::default()
    });
    let (old, again) = (context("192.0.2.7", 1), context("192.0.2.8", 3_600));
    bench.block(again, &RUN);
    assert_eq!(ran(&bench).phase, CommandPhase::Block);
    bench.put(Task::Undo { bans: vec![old, context("192.0.2.8", 1)] });
    let release = ran(&bench);
    assert_eq!((release.phase, release.context), (CommandPhase::Release, old));
    bench.expect_no_event(Duration::from_millis(300));
    assert_eq!(lines(&path), ["begin 192.0.2.8", "over 192.0.2.7"]);
}

#[test]
fn failed_undo_stops_at_newer_ban() {
    let (_directory, path) = output_file();
    let bench = with(Run {
        command: shell(&format!("echo begin $1 >> {path}"), &["$TARGET$"]),
        expire_command: shell(&format!("echo over $1 >> {path}; exit 1"), &["$TARGET$"]),
        ..Run::default()
    });
    bench.put(Task::Undo { bans: vec![context("192.0.2.7", 1)] });
    let release = ran(&bench);
    assert_eq!((release.phase, release.again), (CommandPhase::Release, Some(Duration::from_secs(1))));
    bench.block(context("192.0.2.7", 3_600), &RUN);
    assert_eq!(ran(&bench).phase, CommandPhase::Block);
    bench.expect_no_event(Duration::from_millis(1_500));
    assert_eq!(lines(&path), ["over 192.0.2.7", "begin 192.0.2.7"], "the newer ban's command is not undone");
}

#[test]
fn unstarted_command_needs_no_end_command() {
    let (_directory, path) = output_file();
    let settings = Run {
        command: shell("sleep 1.5", &[]),
        expire_command: shell(&format!("echo $1 >> {path}"), &["$TARGET$"]),
        at_once: 1,
        ..Run::default()
    };
    let bench = with(settings);
    let (first, second) = (context("192.0.2.7", 60), context("192.0.2.8", 60));
    bench.block(first, &RUN);
    bench.block(second, &RUN);
    std::thread::sleep(Duration::from_millis(100));
    bench.put(Task::Release { targets: vec![second.target] });
    assert_eq!(ran(&bench).context, first);
    bench.expect_no_event(Duration::from_millis(300));
    assert_eq!(lines(&path), [""; 0]);
}

#[test]
fn concurrent_runs_are_limited_without_loss() {
    let (_directory, path) = output_file();
    // The first three wait for each other, however slowly they start.
    let script = format!(
        "echo + >> {path}; while test $(grep -c + {path}) -lt 3; do sleep 0.05; done; sleep 0.1; echo - >> {path}"
    );
    let bench = with(Run { at_once: 3, ..run(&script) });
    for last in 1..=20 {
        bench.block(context(&format!("192.0.2.{last}"), 60), &RUN);
    }
    for _ in 0..20 {
        assert_eq!(ran(&bench).outcome, ExitOutcome::Exited(0));
    }
    let mut running = 0_i32;
    let most = lines(&path).iter().map(|line| (running += if line == "+" { 1 } else { -1 }, running).1).max();
    assert_eq!((most, running), (Some(3), 0));
}

#[test]
fn refused_commands_are_counted_and_reported() {
    let (_directory, path) = output_file();
    let script = format!("while ! test -e {path}; do sleep 0.05; done");
    let bench = with(Run { at_once: 1, timeout: Duration::from_secs(60), ..run(&script) });
    for n in 0..1_100_u32 {
        bench.block(context(&std::net::Ipv4Addr::from(0x0a00_0000 + n).to_string(), 600), &RUN);
    }
    // Each round of the thread reports a part; the rest follows within a minute or at the end.
    assert!(matches!(bench.next(), BackendEvent::Lost { tasks: 0, commands: 1.. }));
    fs::write(&path, "").unwrap();
    while !matches!(bench.next(), BackendEvent::Ran { .. }) {}
    let (stopped, _) = bench.stop(Duration::from_millis(500) * slowness());
    let Stopped::Left(left) = stopped else { panic!("{stopped:?}") };
    assert!(left.into_keys().eq(RUN));
}

#[test]
fn release_of_many_bans_undoes_each() {
    const BANS: u32 = 20_000;
    let settings = Run { expire_command: shell("sleep 1000", &[]), at_once: 2, ..run("true") };
    let bench = with(settings);
    let context = |n: u32| context(&std::net::Ipv4Addr::from(0x0a00_0000 + n).to_string(), 3_600);
    let adopted = |n| Adopted {
        context: context(n),
        backends: Backend::Command.into(),
        done: Backend::Command.into(),
        left: Expiry::Never,
    };
    bench.put(Task::Adopt { bans: (0..BANS).map(adopted).collect() });
    let mut queue = SlowQueue::new(bench.backends.as_ref().unwrap(), &RUN, false, false);
    let targets: Vec<BanTarget> = (0..BANS).map(|n| context(n).target).collect();
    queue.lift(&targets).unwrap();
    let (stopped, events) = bench.stop(Duration::from_secs(4) * slowness());
    let ran = events.iter().filter(|event| matches!(event, BackendEvent::Ran { .. })).count();
    let Stopped::Left(left) = stopped else { panic!("{stopped:?}") };
    assert!(left.keys().eq(&RUN), "{left:?}");
    assert_eq!(
        (ran + left[&Backend::Command], ran > 0),
        (targets.len(), true),
        "each command runs or waits for the next start"
    );
    let others: Vec<_> = events.iter().filter(|event| !matches!(event, BackendEvent::Ran { .. })).collect();
    assert!(others.is_empty(), "{others:?}");
}

#[test]
fn backends_follow_given_order() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("hosts.deny");
    let script =
        format!("sleep 0.2; grep -qx 'ALL: $1' {path} 2>/dev/null && echo denied || echo open", path = path.display());
    let script = script.replace("'ALL: $1'", "\"ALL: $1\"");
    let run = run(&script);
    let bench = Bench::start(vec![command(run), hosts_deny(&path)]);
    bench.block(context("192.0.2.7", 60), &[Backend::Command, Backend::HostsDeny]);
    assert_eq!(ran(&bench).output, "open");
    assert!(matches!(bench.next(), BackendEvent::Done { backend: Backend::HostsDeny, .. }));
    bench.block(context("192.0.2.8", 60), &[Backend::HostsDeny, Backend::Command]);
    assert!(matches!(bench.next(), BackendEvent::Done { backend: Backend::HostsDeny, .. }));
    assert_eq!(ran(&bench).output, "denied");
}

#[test]
fn block_waits_bounded_time_for_command() {
    for (script, is_ended) in [("exit 0", true), ("exit 1", true), ("sleep 0.2", true), ("sleep 1000", false)] {
        let limit = if is_ended { TIMEOUT } else { Duration::from_millis(1_500) } * slowness();
        let bench = with(Run { first: true, timeout: limit, ..run(script) });
        let context = context("192.0.2.7", 60);
        let started = Instant::now();
        bench.put(Task::Before { context });
        let (first, second) = (bench.next(), bench.next());
        if is_ended {
            assert!(
                matches!(first, BackendEvent::Ran { phase: CommandPhase::Before, again: None, .. }),
                "{script}: {first:?}"
            );
            assert_eq!(second, BackendEvent::Ready { context });
        } else {
            // The command's limit and the wait for it end at the same moment.
            let events = [&first, &second];
            assert!(events.contains(&&BackendEvent::Ready { context }), "{script}: {events:?}");
            assert!(
                events.iter().any(|event| matches!(event, BackendEvent::Ran { outcome: ExitOutcome::TimedOut, .. })),
                "{events:?}"
            );
        }
        assert!(started.elapsed() >= if is_ended { Duration::ZERO } else { limit });
        bench.expect_no_event(Duration::from_millis(200));
    }
}

#[test]
fn many_commands_delay_no_block() {
    let limit = Duration::from_millis(500) * slowness();
    let bench = with(Run { first: true, timeout: limit, at_once: 1, ..run("sleep 1000") });
    let started = Instant::now();
    for last in 1..=50 {
        bench.put(Task::Before { context: context(&format!("192.0.2.{last}"), 60) });
    }
    let mut ready = 0;
    while ready < 50 {
        ready += usize::from(matches!(bench.next(), BackendEvent::Ready { .. }));
    }
    assert!(
        started.elapsed() < limit * 20,
        "the blocks waited for fifty commands of {limit:?}: {:?}",
        started.elapsed()
    );
}

#[test]
fn running_commands_end_within_given_time() {
    let (_directory, path) = output_file();
    let script = format!("trap '' TERM; echo $$ >> {path}; while :; do sleep 0.05; done");
    let bench = with(run(&script));
    bench.block(context("192.0.2.7", 60), &RUN);
    assert!(within(TIMEOUT, || lines(&path).first().map(|_| ())).is_some());
    let started = Instant::now();
    let limit = Duration::from_secs(4) * slowness();
    let (stopped, events) = bench.stop(limit);
    assert!(started.elapsed() < limit, "{:?}", started.elapsed());
    assert_eq!(stopped, Stopped::Whole, "its end was reported");
    assert!(
        matches!(&events[..], [BackendEvent::Ran { outcome: ExitOutcome::Stopped, again: None, .. }]),
        "{events:?}"
    );
    assert!(!is_alive(&lines(&path)[0]));
}

#[test]
fn late_line_leaves_newer_ban_its_command() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("hosts.deny");
    let run = run("echo ran");
    let bench = Bench::start(vec![command(run), hosts_deny(&path)]);
    let context = context("192.0.2.7", 60);
    bench.block(context, &[Backend::HostsDeny, Backend::Command]);
    // At start the daemon mistakes the new ban for one from before, because it is in the kernel.
    let unknown = |target| Task::BlockUnknown {
        context: BanContext::by_hand(target, context.expiry, context.since),
        backends: [Backend::HostsDeny].into(),
    };
    bench.put(unknown(context.target));
    assert!(matches!(bench.next(), BackendEvent::Done { context: BanContext { class: Some(_), .. }, .. }));
    assert_eq!(ran(&bench).output, "ran", "the ban continues with its next backend");
    bench.put(unknown(crate::target("192.0.2.8")));
    let BackendEvent::Done { context, backend: Backend::HostsDeny, .. } = bench.next() else { panic!("no line") };
    assert_eq!(context.target, crate::target("192.0.2.8"), "a ban that is not known yet gets its line");
}
