//! Runs the daemon: acquires what needs privileges, drops them, and serves until a signal. The event loop runs on tokio
//! on one thread, and the sensor on another.

mod allow_names;
mod allow_sources;
mod allowances;
mod backends;
pub mod background;
mod ban_recorder;
mod command_helper;
mod components;
mod config_source;
mod control_handler;
mod decoys;
mod error;
mod event_loop;
mod event_sink;
mod file_helper;
mod fleet;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod guest_ports;
pub mod helper;
pub mod helper_process;
pub mod host_memory;
mod host_readings;
mod host_snapshot;
mod host_state;
mod ignore_files;
mod known_peers;
mod log_writer;
mod notifier;
mod optional;
mod paths;
mod recent_listeners;
mod reconciler;
mod reverse_dns;
mod ring_size;
mod sandbox_policy;
mod sensor_thread;
mod serve;
mod service_tracker;
mod settling;
mod startup_reconcile;
mod systemd;
mod table_identity;
mod table_monitor;
mod trial;
mod unfounded_bans;

use std::time::Duration;

use crate::capture::decoy::SharedListener;
use crate::config::{Config, LogTarget};
use crate::control::server::{Access, BoundSocket};
use crate::events::log::{self, LogThread};
use crate::panic_guard;
use crate::sandbox::{self, InstanceLock, Sandbox, check_directories, closed_directories};
use crate::types::{Backend, shared64};
use backends::UsedBackends;
use command_helper::CommandHelper;
use decoys::FirewallWatch;
use file_helper::RootFiles;
use sensor_thread::SensorThread;

pub use config_source::Reread;
pub use error::DaemonError;
pub use paths::DaemonPaths;

/// The user of the fleet process.
const FLEET_USER: &str = "portsentry-fleet";

/// Runs until SIGINT or SIGTERM. With `confirm`, blocking ends after that time unless an operator confirms. If
/// `sandboxed`, privileges are dropped permanently.
pub fn run(
    config: Config,
    paths: DaemonPaths,
    (confirm, sandboxed): (Option<Duration>, bool),
    reread: Reread,
) -> Result<(), DaemonError> {
    panic_guard::install_panic_hook(log::error);
    shared64::set_nat64(&config.nat64);
    config.check_ownership(&paths.config)?;
    let instance_lock = InstanceLock::claim()?;
    // Without blocking there is nothing to confirm.
    let confirm = confirm.filter(|_| config.blocks());
    let earlier_bans = !config.blocks() && backends::have_leftovers(&config, &paths.state_dir);
    let used = UsedBackends::new(&config, earlier_bans, backends::slow_leftovers(&config));
    let mut policy = sandbox_policy::of_daemon(&config, &paths, &used);
    if sandboxed {
        check_directories(&policy)?;
    }
    // While programs can still be started.
    let command_helper = match used.open.contains(Backend::Command) || config.notifies() {
        true => Some(CommandHelper::start(&paths.config, sandboxed)?),
        false => None,
    };
    let closed = if sandboxed { closed_directories(&policy) } else { Vec::new() };
    let root_files = RootFiles::start(&config, &paths.config, &closed, used.open.contains(Backend::HostsDeny))?;
    policy.write.retain(|directory| !closed.contains(directory));
    let firewall_watch = FirewallWatch::open(&config);
    let shared = config.shares_decoys().then(SharedListener::open);
    // Before a second thread exists. Only root may be able to create the socket in its directory.
    let fleet_user = config.fleet.is_joined().then(|| sandbox::user_id(FLEET_USER)).flatten();
    let bind = || {
        let fleet = config.fleet.is_joined().then(|| BoundSocket::open(&config.fleet.socket, Access::All));
        (BoundSocket::open(&paths.socket, Access::Group), fleet)
    };
    let mut sockets = None;
    let mut sandbox = match sandboxed {
        true => Sandbox::enter(&policy, || sockets = Some(bind())),
        false => Sandbox::without(&policy),
    };
    let (control, fleet) = sockets.unwrap_or_else(bind);
    let sensor_thread = SensorThread::start(sandboxed)?;
    if sandboxed {
        sandbox.drop_privileges();
        sandbox.warnings.extend(sandbox_policy::own_commands(&config, used.open.contains(Backend::Command), &sandbox));
    }
    // One thread for blocking calls starts now, and such threads never end: while local users leave no room for another
    // thread, a call waits for an existing one. Without one it would panic.
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().thread_keep_alive(Duration::MAX).build();
    let runtime = runtime.map_err(DaemonError::system("start the event loop"))?;
    drop(runtime.spawn_blocking(|| ()));
    let privileged = serve::Privileged {
        instance_lock,
        sandbox,
        sensor_thread,
        command_helper,
        root_files,
        control,
        fleet,
        fleet_user,
        used,
        firewall_watch,
        shared,
    };
    // With `--daemon`, lines to standard error and syslog (the default there) are written directly: standard error is
    // closed once the host is monitored, so that no line may wait until then, and syslog has its own time limit.
    let is_direct = background::is_detached() && config.report.log != LogTarget::Journal;
    let log_thread = (!is_direct).then(LogThread::start).transpose().map_err(DaemonError::system("start a thread"))?;
    let result = runtime.block_on(serve::serve(config, paths, privileged, confirm, reread));
    // Neither an unanswered look-up nor an unread log may delay the shutdown.
    runtime.shutdown_background();
    log_thread.into_iter().for_each(LogThread::finish);
    result
}
