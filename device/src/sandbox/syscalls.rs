//! Seccomp: the system calls that each kind of thread needs.
//!
//! With `--seccomp log` the kernel logs each call that is missing here.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::settings::{Role, SeccompMode};

/// Every thread: wait, notify, allocate, exit.
const COMMON: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_newfstatat,
    libc::SYS_nanosleep,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_preadv2,
    libc::SYS_read,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Starting and joining threads.
const THREADS: &[i64] = &[
    libc::SYS_clone3,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_set_robust_list,
];

/// The main thread: signals, the metrics socket, and removing sockets at exit.
const CONTROL: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_lseek,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_statx,
    libc::SYS_unlink,
];

/// Threads that serve front ends: connections, and threads and descriptors for each.
const FRONT_END: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_dup,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_eventfd2,
    libc::SYS_getsockopt,
    libc::SYS_lseek,
    libc::SYS_readlink,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_statx,
];

/// A queue's thread: freeing memory (DISCARD).
const QUEUE: &[i64] = &[libc::SYS_fallocate];

/// Start-up, before the narrower filters are in place.
const START: &[i64] = &[
    libc::SYS_epoll_create1,
    libc::SYS_eventfd2,
    libc::SYS_seccomp,
    libc::SYS_pipe2,
];

/// Installs the filter of `role` for this thread and those that it starts later.
pub(super) fn install(role: Role, mode: SeccompMode) -> Result<(), seccompiler::Error> {
    match program(role, mode)? {
        Some(program) => seccompiler::apply_filter(&program),
        None => Ok(()),
    }
}

/// The filter of `role`; `None` in [`SeccompMode::None`].
fn program(role: Role, mode: SeccompMode) -> Result<Option<BpfProgram>, seccompiler::Error> {
    let action = match mode {
        SeccompMode::None => return Ok(None),
        SeccompMode::Log => SeccompAction::Log,
        SeccompMode::Kill => SeccompAction::KillProcess,
    };
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    let filter = SeccompFilter::new(rules(role)?, action, SeccompAction::Allow, architecture)?;
    Ok(Some(filter.try_into()?))
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn rules(role: Role) -> Result<Rules, seccompiler::BackendError> {
    let lists: &[&[i64]] = match role {
        Role::Process => &[COMMON, THREADS, CONTROL, FRONT_END, QUEUE, START],
        Role::Control => &[COMMON, CONTROL],
        Role::FrontEnd => &[COMMON, THREADS, FRONT_END, QUEUE, &[libc::SYS_seccomp]],
        Role::Queue => &[COMMON, QUEUE],
        Role::Log => &[COMMON],
    };
    let mut rules: Rules = lists
        .iter()
        .flat_map(|list| list.iter())
        .map(|&number| (number, Vec::new()))
        .collect();

    // Mappings, but no executable ones.
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let not_executable = || {
        let other_bits = !u64::from(protection.cast_unsigned()) & 0xffff_ffff;
        masked(2, other_bits, 0)
    };
    rules.insert(libc::SYS_mmap, vec![not_executable()?]);
    rules.insert(libc::SYS_mprotect, vec![not_executable()?]);
    // Thread names; and what threads need that confine themselves, where such are started.
    let prctl: &[i32] = match role {
        Role::Process | Role::FrontEnd => &[libc::PR_SET_NAME, libc::PR_SET_NO_NEW_PRIVS],
        Role::Control | Role::Queue | Role::Log => &[libc::PR_SET_NAME],
    };
    let prctl = prctl
        .iter()
        .map(|option| equal(0, u64::from(option.cast_unsigned())));
    rules.insert(libc::SYS_prctl, prctl.collect::<Result<_, _>>()?);
    // The SIGBUS handler resets the action; the C library claims two signals when it starts the
    // first thread.
    let signals = [libc::SIGBUS, 32, 33].map(|signal| equal(0, u64::from(signal.cast_unsigned())));
    rules.insert(
        libc::SYS_rt_sigaction,
        signals.into_iter().collect::<Result<_, _>>()?,
    );
    // The standard library makes sockets non-blocking with it.
    if !matches!(role, Role::Queue | Role::Log) {
        rules.insert(libc::SYS_ioctl, vec![equal(1, libc::FIONBIO)?]);
    }
    // `--fault vanish` kills this process; no other may be killed.
    let own = u64::from(std::process::id());
    let kill = u64::from(libc::SIGKILL.cast_unsigned());
    let killed = SeccompRule::new(vec![condition(0, own)?, condition(1, kill)?])?;
    rules.insert(libc::SYS_kill, vec![killed]);
    Ok(rules)
}

fn condition(argument: u8, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

fn equal(argument: u8, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![condition(argument, value)?])
}

fn masked(argument: u8, mask: u64, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    let operator = SeccompCmpOp::MaskedEq(mask);
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?;
    SeccompRule::new(vec![condition])
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREAD_ROLES: [Role; 4] = [Role::Control, Role::FrontEnd, Role::Queue, Role::Log];

    /// Filters accumulate: no thread's filter can allow what the process's forbids.
    #[test]
    fn the_process_filter_allows_what_any_thread_filter_allows() {
        let process = rules(Role::Process).unwrap();
        for role in THREAD_ROLES {
            for (number, narrow) in rules(role).unwrap() {
                let wide = process.get(&number);
                let wide = wide.unwrap_or_else(|| panic!("{role:?}: {number} is not allowed"));
                let allowed = narrow.iter().all(|rule| wide.contains(rule));
                assert!(
                    wide.is_empty() || (allowed && !narrow.is_empty()),
                    "{role:?}: {number}"
                );
            }
        }
    }

    #[test]
    fn queue_threads_have_the_smallest_allow_list() {
        let count = |role| rules(role).unwrap().len();
        for role in [Role::Process, Role::Control, Role::FrontEnd] {
            assert!(count(Role::Queue) < count(role), "{role:?}");
        }
        let queue = rules(Role::Queue).unwrap();
        for number in [
            libc::SYS_openat,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_accept4,
            libc::SYS_recvmsg,
            libc::SYS_sendmsg,
            libc::SYS_clone3,
            libc::SYS_execve,
            libc::SYS_ptrace,
            libc::SYS_unlink,
            libc::SYS_seccomp,
        ] {
            assert!(!queue.contains_key(&number), "{number}");
        }
    }

    /// Of the calls that are many in one, each is allowed by its number.
    #[test]
    fn ioctl_is_allowed_by_request_number() {
        for role in [Role::Process, Role::Control, Role::FrontEnd] {
            let allowed = rules(role).unwrap().remove(&libc::SYS_ioctl).unwrap();
            assert_eq!(allowed, [equal(1, libc::FIONBIO).unwrap()], "{role:?}");
        }
        for role in [Role::Queue, Role::Log] {
            assert!(!rules(role).unwrap().contains_key(&libc::SYS_ioctl));
        }
    }

    #[test]
    fn every_filter_compiles_within_the_kernel_limit() {
        // BPF_MAXINSNS.
        const LIMIT: usize = 4096;
        for role in [Role::Process, Role::Control, Role::FrontEnd, Role::Queue] {
            for mode in [SeccompMode::Log, SeccompMode::Kill] {
                let program = program(role, mode).unwrap().unwrap();
                assert!((1..=LIMIT).contains(&program.len()), "{role:?}");
            }
            assert!(program(role, SeccompMode::None).unwrap().is_none());
        }
    }
}
