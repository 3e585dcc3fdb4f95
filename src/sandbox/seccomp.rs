//! Restricts the system calls of the process with seccomp. A call that is not on the list kills the process
//! immediately, and the service manager restarts it. Harmful uses of a few listed calls return an error.
//!
//! The command helper has the opposite list, because commands inherit its filter and may be any program: some calls
//! that no command needs return an error, and all others are allowed.
//!
//! The lists come from traces of the tests, from rarely used calls of libc, SQLite and libpcap, and from the
//! equivalents in other versions of libc.
//!
//! References: seccomp(2), and syscalls(2) for the calls of each architecture.

use std::collections::BTreeMap;
use std::fmt;

use nix::libc;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};
use serde::{Deserialize, Serialize};

use super::policy::{Policy, Process};

/// The permitted system calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Calls {
    #[default]
    #[serde(rename = "off")]
    All,
    /// All except some that no command needs.
    #[serde(rename = "deny-list")]
    Most,
    /// Only those on the list; any other call ends the process.
    #[serde(rename = "allow-list")]
    Listed,
}

impl fmt::Display for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// Why system calls are not restricted.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfiltered {
    #[error("there is no list of system calls for this processor ({})", std::env::consts::ARCH)]
    Processor,
    #[error("the filter cannot be compiled ({0})")]
    Filter(#[from] BackendError),
    #[error("the kernel has no seccomp filters ({0})")]
    Refused(#[from] seccompiler::Error),
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Installs the filters for this thread and everything that it starts.
pub(super) fn filter(policy: &Policy) -> Result<Calls, Unfiltered> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|_| Unfiltered::Processor)?;
    let error = |number: i32| SeccompAction::Errno(u32::try_from(number).unwrap_or_default());
    let install = |rules: Rules, mismatch, matches| {
        let program: BpfProgram = SeccompFilter::new(rules, mismatch, matches, arch)?.try_into()?;
        apply_filter(&program).map_err(Unfiltered::from)
    };
    let all = |calls: &mut dyn Iterator<Item = i64>| calls.map(|call| (call, Vec::new())).collect::<Rules>();
    if policy.process == Process::Commands {
        install(all(&mut DENIED.iter().copied()), SeccompAction::Allow, error(libc::EPERM))?;
        return Ok(Calls::Most);
    }
    // The arguments of clone3 are in memory, where a filter cannot see them; without it libc uses clone(2).
    install(all(&mut [libc::SYS_clone3].into_iter()), SeccompAction::Allow, error(libc::ENOSYS))?;
    install(harmful(policy)?, SeccompAction::Allow, error(libc::EPERM))?;
    // Last, because installing a filter is not on the list.
    install(all(&mut listed(policy.process)), SeccompAction::KillProcess, SeccompAction::Allow)?;
    Ok(Calls::Listed)
}

fn listed(process: Process) -> impl Iterator<Item = i64> {
    let own = if process == Process::Files { [FILES, &[]] } else { [DAEMON, DAEMON_OLD] };
    [COMMON, COMMON_OLD].into_iter().chain(own).flatten().copied()
}

/// Listed calls with arguments that this program never uses.
fn harmful(policy: &Policy) -> Result<Rules, BackendError> {
    let is = |index: u8, operator, value: u64| SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value);
    let none_of = |index: u8, values: &[u64]| {
        let each = values.iter().map(|value| is(index, SeccompCmpOp::Ne, *value));
        SeccompRule::new(each.collect::<Result<Vec<_>, _>>()?)
    };
    let one = |condition: Result<SeccompCondition, BackendError>| SeccompRule::new(vec![condition?]);
    let number = |value: i32| u64::try_from(value).unwrap_or_default();
    let set_bit = |index: u8, bit: u64| one(is(index, SeccompCmpOp::MaskedEq(bit), bit));
    let another = |index: u8| one(is(index, SeccompCmpOp::Ne, 0));
    let netlink = [is(0, SeccompCmpOp::Eq, number(libc::AF_NETLINK))];
    let netlink = netlink.into_iter().chain(NETLINK.map(|kind| is(2, SeccompCmpOp::Ne, number(kind))));
    let netlink = SeccompRule::new(netlink.collect::<Result<Vec<_>, _>>()?)?;
    let mut rules = Rules::from([
        (libc::SYS_socket, vec![none_of(0, &FAMILIES.map(number))?, netlink]),
        // Limits and scheduling of other processes of the same user. libc passes its own thread id when it requests
        // SCHED_RR.
        (libc::SYS_prlimit64, vec![another(0)?]),
        (libc::SYS_sched_setparam, vec![another(0)?]),
        (libc::SYS_sched_setattr, vec![another(0)?]),
        (libc::SYS_sched_setscheduler, vec![none_of(1, &[number(libc::SCHED_RR)])?]),
        // Set-user-ID modes, and mode changes by path, which Landlock does not restrict.
        (libc::SYS_fchmod, vec![set_bit(1, 0o4000)?, set_bit(1, 0o2000)?]),
        (libc::SYS_fchmodat, Vec::new()),
        (libc::SYS_fchmodat2, Vec::new()),
        // Landlock does not restrict timestamps either.
        (libc::SYS_utimensat, Vec::new()),
        (libc::SYS_ioctl, vec![none_of(1, &REQUESTS)?]),
        (libc::SYS_prctl, vec![none_of(0, &PRCTL.map(number))?]),
        // Only the check whether a process exists (signal 0).
        (libc::SYS_kill, vec![one(is(1, SeccompCmpOp::Ne, 0))?]),
        // Own threads only, for abort(3).
        (libc::SYS_tgkill, vec![none_of(0, &[u64::from(std::process::id())])?]),
        // Threads only, no processes.
        (libc::SYS_clone, vec![one(is(0, SeccompCmpOp::MaskedEq(number(libc::CLONE_THREAD)), 0))?]),
    ]);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_chmod, Vec::new());
    if policy.process == Process::Daemon && policy.write.is_empty() {
        // Only the replacement of hosts.deny copies attributes.
        rules.insert(libc::SYS_fsetxattr, Vec::new());
    }
    if !policy.names {
        // Only name look-ups load libraries. Without them no new code can be mapped.
        let code = SeccompCmpOp::MaskedEq(number(libc::PROT_EXEC));
        for call in [libc::SYS_mmap, libc::SYS_mprotect] {
            rules.insert(call, vec![one(is(2, code.clone(), number(libc::PROT_EXEC)))?]);
        }
    }
    Ok(rules)
}

/// Address families for the log and the control socket; blocking and host state; packets; decoys, metrics, and names
/// that a reload may add.
const FAMILIES: [i32; 5] = [libc::AF_UNIX, libc::AF_NETLINK, libc::AF_PACKET, libc::AF_INET, libc::AF_INET6];

/// Routes, links and addresses; sockets; nftables; IPsec policies.
const NETLINK: [i32; 4] = [libc::NETLINK_ROUTE, libc::NETLINK_SOCK_DIAG, libc::NETLINK_NETFILTER, libc::NETLINK_XFRM];

/// Permitted ioctl requests: non-blocking mode, available bytes, terminal checks; names, indexes, link layers, MTUs,
/// flags, capabilities and timestamps of interfaces (libpcap); packet timestamps.
const REQUESTS: [u64; 17] = [
    0x5401, // TCGETS
    0x5413, // TIOCGWINSZ
    0x541b, // FIONREAD
    0x5421, // FIONBIO
    0x5451, // FIOCLEX
    0x8906, // SIOCGSTAMP
    0x8910, // SIOCGIFNAME
    0x8912, // SIOCGIFCONF
    0x8913, // SIOCGIFFLAGS
    0x8915, // SIOCGIFADDR
    0x8921, // SIOCGIFMTU
    0x8927, // SIOCGIFHWADDR
    0x8933, // SIOCGIFINDEX
    0x8946, // SIOCETHTOOL
    0x8994, // SIOCBONDINFOQUERY
    0x89b1, // SIOCGHWTSTAMP
    0x8b01, // SIOCGIWNAME
];

/// Thread and memory names, and queries.
const PRCTL: [i32; 10] = [
    libc::PR_SET_NAME,
    libc::PR_GET_NAME,
    libc::PR_SET_VMA,
    libc::PR_CAPBSET_READ,
    PR_GET_AUXV,
    libc::PR_GET_DUMPABLE,
    libc::PR_GET_NO_NEW_PRIVS,
    libc::PR_GET_SECCOMP,
    // These two only drop privileges; they are needed to install the last filter.
    libc::PR_SET_NO_NEW_PRIVS,
    libc::PR_SET_SECCOMP,
];

/// Reads the auxiliary vector (prctl(2)); libc has no constant for it yet.
const PR_GET_AUXV: i32 = 0x4155_5856;

/// Calls of the daemon, the file helper and their libraries.
const COMMON: &[i64] = &[
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    // Threads and signals.
    libc::SYS_futex,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_tgkill,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // Time and random numbers.
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    // Descriptors.
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_lseek,
    libc::SYS_epoll_ctl,
    libc::SYS_ppoll,
    // Files.
    libc::SYS_openat,
    libc::SYS_newfstatat,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_ftruncate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fchmod,
    libc::SYS_fchown,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_fsetxattr,
    // Messages between both.
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    // Identity.
    libc::SYS_geteuid,
];

/// Calls of the daemon only: it creates sockets and starts threads.
const DAEMON: &[i64] = &[
    // Memory.
    libc::SYS_mincore,
    libc::SYS_membarrier,
    // Threads, their scheduling, and signals.
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_getppid,
    libc::SYS_getcpu,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_setparam,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_sched_getattr,
    libc::SYS_sched_setattr,
    libc::SYS_prctl,
    libc::SYS_kill,
    // The exit status of the command helper.
    libc::SYS_wait4,
    // Time and random numbers.
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    // Descriptors.
    libc::SYS_readv,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_ioctl,
    libc::SYS_pipe2,
    libc::SYS_eventfd2,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_pselect6,
    // Files.
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_mkdirat,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_flock,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_utimensat,
    // Sockets.
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
    // Identity, location and limits of the process.
    libc::SYS_getuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_prlimit64,
    libc::SYS_getrlimit,
    libc::SYS_setrlimit,
    libc::SYS_getrusage,
];

/// Calls of the file helper only: it creates no sockets, threads or processes, and starts no program.
const FILES: &[i64] = &[libc::SYS_umask];

/// Older equivalents, which only older architectures have.
#[cfg(target_arch = "x86_64")]
const COMMON_OLD: &[i64] = &[
    libc::SYS_poll,
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_unlink,
    libc::SYS_rename,
];
#[cfg(target_arch = "x86_64")]
const DAEMON_OLD: &[i64] = &[
    libc::SYS_arch_prctl,
    libc::SYS_time,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_select,
    libc::SYS_epoll_wait,
    libc::SYS_mkdir,
    libc::SYS_chmod,
];
#[cfg(not(target_arch = "x86_64"))]
const COMMON_OLD: &[i64] = &[];
#[cfg(not(target_arch = "x86_64"))]
const DAEMON_OLD: &[i64] = &[];

/// Calls that no command needs: other processes' memory, kernel modules, mounts, keys, clocks, and namespaces.
const DENIED: &[i64] = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_open_by_handle_at,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syscall_list_starts_no_program() {
        let never = [libc::SYS_execve, libc::SYS_execveat, libc::SYS_ptrace, libc::SYS_mount, libc::SYS_setuid];
        for call in never.iter().chain(DENIED) {
            for process in [Process::Daemon, Process::Files] {
                assert!(!listed(process).any(|listed| listed == *call), "{call}");
            }
        }
    }

    #[test]
    fn filters_exist_for_every_listed_processor() {
        for arch in [TargetArch::x86_64, TargetArch::aarch64] {
            for policy in [Policy::default(), Policy { names: true, ..Policy::default() }] {
                let rules = harmful(&policy).unwrap();
                let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(1), arch).unwrap();
                let program: BpfProgram = filter.try_into().unwrap();
                assert!(!program.is_empty());
            }
        }
    }

    #[test]
    fn harmful_arguments_are_refused() {
        use std::fs::{Permissions, set_permissions};
        use std::os::unix::fs::PermissionsExt;

        use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, socket_with};
        use rustix::process::{Pid, Resource, Rlimit, getppid, prlimit};

        // A filter applies to one thread.
        let tried = std::thread::spawn(|| {
            let file = tempfile::NamedTempFile::new().unwrap();
            let rules = harmful(&Policy::default()).unwrap();
            let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
            let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
            let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, arch).unwrap();
            rustix::thread::set_no_new_privs(true).unwrap();
            let program: BpfProgram = filter.try_into().unwrap();
            apply_filter(&program).unwrap();
            let netlink = |number: i32| {
                let protocol = u32::try_from(number).ok().and_then(std::num::NonZeroU32::new).map(Protocol::from_raw);
                socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol).is_ok()
            };
            for kind in NETLINK {
                assert!(netlink(kind), "{kind}");
            }
            for kind in [libc::NETLINK_AUDIT, libc::NETLINK_GENERIC, libc::NETLINK_KOBJECT_UEVENT] {
                assert!(!netlink(kind), "{kind}");
            }
            let limit = || Rlimit { current: Some(64), maximum: Some(64) };
            let parent = getppid().unwrap_or(Pid::INIT);
            assert!(prlimit(Some(parent), Resource::Nofile, limit()).is_err(), "of another process");
            assert!(prlimit(None, Resource::Core, Rlimit { current: Some(0), maximum: None }).is_ok());
            let path = |mode| set_permissions(file.path(), Permissions::from_mode(mode)).is_ok();
            assert!(!path(0o660) && !path(0o4755));
            let open = |mode| file.as_file().set_permissions(Permissions::from_mode(mode)).is_ok();
            assert!(open(0o644) && !open(0o4755) && !open(0o2755));
            assert!(file.as_file().set_modified(std::time::SystemTime::UNIX_EPOCH).is_err(), "times");
        });
        tried.join().unwrap();
    }

    #[test]
    fn no_syscall_is_listed_twice() {
        for process in [Process::Daemon, Process::Files] {
            let mut calls: Vec<i64> = listed(process).collect();
            calls.sort_unstable();
            assert!(calls.windows(2).all(|pair| pair[0] != pair[1]));
        }
    }
}
