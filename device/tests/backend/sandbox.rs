//! The sandbox forbids what it claims to: a child process confines itself and then tries.

use std::{
    os::unix::process::ExitStatusExt,
    process::{Command, Output},
};

use vdma_protocol::Operation;
use vhost_device_dma::sandbox::{
    Role, SandboxSettings, SeccompMode, confine_process, confine_thread, restrict_file_system,
};

use crate::support::{Backend, FrontEnd, Request, is_sandboxed};

const ROLE: &str = "VDMA_TEST_ROLE";
const ACTION: &str = "VDMA_TEST_ACTION";
const SURVIVED: &str = "the action was carried out";

/// Actions that no thread of the backend is allowed.
const FORBIDDEN: [&str; 12] = [
    "open",
    "create",
    "socket",
    "connect",
    "execute",
    "fork",
    "trace",
    "code",
    "make-code",
    "mount",
    "kill",
    "handler",
];

/// Runs this very test binary, only `action_in_a_child`, in a role that tries an action.
fn child(role: &str, action: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "sandbox::action_in_a_child",
            "--ignored",
            "--nocapture",
        ])
        .env(ROLE, role)
        .env(ACTION, action)
        .output()
        .unwrap()
}

/// Whether these tests cannot check anything; prints the reason.
fn without_sandbox() -> bool {
    if !is_sandboxed() {
        println!("not checked: VDMA_TEST_SANDBOX=off");
    }
    !is_sandboxed()
}

#[test]
fn forbidden_system_calls_kill_every_role() {
    if without_sandbox() {
        return;
    }
    for role in ["control", "front-end", "queue", "process"] {
        for action in FORBIDDEN {
            let output = child(role, action);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(!text.contains(SURVIVED), "{role} {action}: {text}");
            let signal = output.status.signal();
            assert_eq!(signal, Some(libc::SIGSYS), "{role} {action}: {text}");
        }
        // Without an action the child survives.
        let output = child(role, "nothing");
        assert!(
            String::from_utf8_lossy(&output.stdout).contains(SURVIVED),
            "{role}"
        );
    }
}

#[test]
fn threads_and_connections_only_where_a_role_needs_them() {
    if without_sandbox() {
        return;
    }
    for (role, action, allowed) in [
        ("queue", "thread", false),
        ("control", "thread", false),
        ("front-end", "thread", true),
        ("queue", "accept", false),
        ("front-end", "accept", true),
        ("control", "accept", true),
        ("queue", "unlink", false),
        ("front-end", "unlink", false),
        ("control", "unlink", true),
    ] {
        let output = child(role, action);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(text.contains(SURVIVED), allowed, "{role} {action}: {text}");
        assert_eq!(
            output.status.signal() == Some(libc::SIGSYS),
            !allowed,
            "{role} {action}"
        );
    }
}

#[test]
fn log_mode_forbids_nothing() {
    if without_sandbox() {
        return;
    }
    for action in ["open", "socket"] {
        let output = child("log", action);
        assert!(
            String::from_utf8_lossy(&output.stdout).contains(SURVIVED),
            "{action}"
        );
    }
}

#[test]
fn no_file_can_be_opened_by_path() {
    if without_sandbox() {
        return;
    }
    let output = child("landlock", "files");
    let text = String::from_utf8_lossy(&output.stdout);
    if text.contains("no landlock") {
        println!("not checked: this kernel has no landlock");
        return;
    }
    assert!(text.contains(SURVIVED), "{text}");
}

/// Landlock applies to the calling thread only, so that a thread of this process can be confined.
#[test]
fn files_can_be_removed_only_in_socket_directories() {
    let directory = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let files = [directory.path(), other.path()].map(|path| path.join("file"));
    for file in &files {
        std::fs::write(file, b"x").unwrap();
    }
    let confined = || {
        restrict_file_system(&[directory.path().to_owned()]).unwrap();
        if std::fs::File::open(&files[0]).is_ok() {
            println!("not checked: this kernel has no landlock");
            return;
        }
        let denied = |result: std::io::Result<()>| {
            assert_eq!(
                result.unwrap_err().kind(),
                std::io::ErrorKind::PermissionDenied
            );
        };
        denied(std::fs::write(directory.path().join("new"), b"x"));
        denied(std::fs::remove_file(&files[1]));
        denied(std::fs::remove_dir(other.path()));
        std::fs::remove_file(&files[0]).unwrap();
    };
    std::thread::scope(|scope| scope.spawn(confined).join().unwrap());
    assert!(files[1].exists());
}

#[test]
fn a_missing_socket_directory_is_an_error() {
    let confined =
        || restrict_file_system(&["/nonexistent/vdma".into()]).map_err(|e| e.to_string());
    let result = std::thread::scope(|scope| scope.spawn(confined).join().unwrap());
    let text = result.unwrap_err();
    assert!(text.contains("--no-landlock"), "{text}");
}

#[test]
fn every_thread_drops_its_privileges() {
    if without_sandbox() {
        return;
    }
    let backend = Backend::start(&["--num-queues", "2", "--memory-size", "1M"]);
    let mut front = FrontEnd::connect_with(
        &backend.socket(),
        &crate::support::Connect {
            num_queues: 2,
            ..Default::default()
        },
    );
    // A thread has its name once it runs: each queue has then completed a request.
    for queue in 0..2 {
        front.call(queue, &Request::new(Operation::Nop, 0, 0, 0));
    }
    let tasks = format!("/proc/{}/task", backend.pid().as_raw_nonzero());
    let mut names = Vec::new();
    for task in std::fs::read_dir(tasks).unwrap() {
        let directory = task.unwrap().path();
        let status = std::fs::read_to_string(directory.join("status")).unwrap();
        for line in [
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
            "CapEff:\t0000000000000000",
            "CapPrm:\t0000000000000000",
        ] {
            assert!(status.contains(line), "{status}");
        }
        names.push(
            std::fs::read_to_string(directory.join("comm"))
                .unwrap()
                .trim()
                .to_owned(),
        );
    }
    for name in ["queue 0", "queue 1", "server", "vhost-user", "bar"] {
        assert!(names.iter().any(|found| found == name), "{names:?}");
    }
}

/// Not a test by itself: [`child`] runs it.
#[test]
#[ignore = "run by the other tests of this module, as a child process"]
fn action_in_a_child() {
    let (Ok(role), Ok(action)) = (std::env::var(ROLE), std::env::var(ACTION)) else {
        return;
    };
    let listener = {
        let path = std::env::temp_dir().join(format!("vdma-test-{}", std::process::id()));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let _ = std::fs::remove_file(path);
        listener
    };
    let kill = SeccompMode::Kill;
    match role.as_str() {
        "landlock" => {
            restrict_file_system(&[]).unwrap();
            match std::fs::File::open("/proc/self/status") {
                Ok(_) => println!("no landlock"),
                Err(e) => {
                    assert_eq!(e.kind(), std::io::ErrorKind::PermissionDenied);
                    let path = std::env::temp_dir().join("vdma-test-landlock");
                    assert!(std::fs::write(path, b"x").is_err());
                    assert!(Command::new("/bin/true").status().is_err());
                    println!("{SURVIVED}");
                }
            }
            return;
        }
        "process" => {
            let settings = SandboxSettings {
                seccomp: kill,
                no_landlock: true,
                ..Default::default()
            };
            confine_process(&settings).unwrap();
        }
        "log" => confine_thread(Role::Queue, SeccompMode::Log).unwrap(),
        "control" => confine_thread(Role::Control, kill).unwrap(),
        "front-end" => confine_thread(Role::FrontEnd, kill).unwrap(),
        _ => confine_thread(Role::Queue, kill).unwrap(),
    }
    perform(&action, &listener);
    println!("{SURVIVED}");
    // Nothing else may run here: the role does not allow what the test harness does.
    std::process::exit(0);
}

fn perform(action: &str, listener: &std::os::unix::net::UnixListener) {
    let map = |protection| {
        // SAFETY: a new anonymous mapping touches no other memory.
        unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                protection,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        }
    };
    match action {
        "nothing" => {}
        "open" => drop(std::fs::File::open("/proc/self/status")),
        "create" => drop(std::fs::File::create("/tmp/vdma-test-created")),
        "socket" => drop(std::net::UdpSocket::bind("127.0.0.1:0")),
        "connect" => drop(std::os::unix::net::UnixStream::connect("/nonexistent")),
        "execute" => {
            use std::os::unix::process::CommandExt;
            let _ = Command::new("/bin/true").exec();
        }
        // SAFETY: the child, if the call were allowed, would be a copy of this process and exit.
        "fork" => consume(unsafe { libc::syscall(libc::SYS_fork) }),
        // SAFETY: the call takes no pointers.
        "trace" => consume(unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) }),
        "code" => consume(map(libc::PROT_READ | libc::PROT_EXEC)),
        "make-code" => {
            let memory = map(libc::PROT_READ | libc::PROT_WRITE);
            // SAFETY: the mapping was just created, and nothing uses it.
            consume(unsafe { libc::mprotect(memory, 4096, libc::PROT_READ | libc::PROT_EXEC) });
        }
        // SAFETY: null pointers are refused by the kernel.
        "mount" => consume(unsafe { libc::syscall(libc::SYS_mount, 0, 0, 0, 0, 0) }),
        "kill" => drop(rustix::process::test_kill_process(
            rustix::process::getppid().unwrap(),
        )),
        // SAFETY: ignoring a signal has no preconditions.
        "handler" => consume(unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) }),
        "thread" => drop(std::thread::spawn(|| {}).join()),
        "accept" => drop(listener.accept()),
        "unlink" => drop(std::fs::remove_file("/nonexistent/vdma")),
        other => panic!("no such action: {other}"),
    }
}

/// Ignores the result of an action.
fn consume<T>(_: T) {}
