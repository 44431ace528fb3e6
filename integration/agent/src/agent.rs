//! The agent: receives and executes the harness's messages.

use std::{
    collections::HashMap,
    fs::{self, File},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use guest_agent::{
    CommandId, HOST_SOCKET, HostReply, PORT_NAME, ToGuest, ToHost, read_frame, write_frame,
};
use rustix::process::Signal;

use crate::{
    command::{self, Running},
    init, kernel_log, leaks,
    link::Link,
};

/// What the agent's threads share.
struct Agent {
    link: Arc<Link>,
    /// Commands that have not ended.
    commands: Mutex<HashMap<CommandId, Running>>,
    /// Programs that wait for a reply of the harness.
    calls: Mutex<HashMap<u32, UnixStream>>,
    next_call: AtomicU32,
}

/// Serves the harness until it disconnects; returns an error when that is impossible.
pub(crate) fn serve() -> Result<(), String> {
    let path = port().ok_or_else(|| format!("no virtio-serial port named {PORT_NAME}"))?;
    let open = || {
        File::options()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|error| format!("{}: {error}", path.display()))
    };
    // The port can be opened only once, so reader and writer share the open file.
    let port = open()?;
    let mut reader = port
        .try_clone()
        .map_err(|error| format!("{}: {error}", path.display()))?;
    let agent = Arc::new(Agent {
        link: Arc::new(Link::new(port)),
        commands: Mutex::default(),
        calls: Mutex::default(),
        next_call: AtomicU32::new(0),
    });
    take_host_calls(&agent)?;
    agent.link.send(&ToHost::Ready {
        kernel: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
    });
    while let Some(message) = read_frame(&mut reader).map_err(|error| error.to_string())? {
        handle(&agent, message);
    }
    Err("the harness disconnected".to_owned())
}

fn handle(agent: &Arc<Agent>, message: ToGuest) {
    match message {
        ToGuest::Run { id, command } => {
            // The entry has to exist before the command can end.
            let mut commands = lock(&agent.commands);
            let on_end = {
                let agent = Arc::clone(agent);
                move |end| {
                    lock(&agent.commands).remove(&id);
                    agent.link.send(&ToHost::Ended { id, end });
                }
            };
            match command::start(&agent.link, id, &command, on_end) {
                Ok(running) => {
                    commands.insert(id, running);
                }
                Err(end) => {
                    drop(commands);
                    agent.link.send(&ToHost::Ended { id, end });
                }
            }
        }
        ToGuest::Input { id, data } => {
            if let Some(running) = lock(&agent.commands).get(&id) {
                running.input(data);
            }
        }
        ToGuest::Resize { id, size } => {
            if let Some(running) = lock(&agent.commands).get(&id) {
                running.resize(size);
            }
        }
        ToGuest::Signal { id, signal } => {
            if let Some(running) = lock(&agent.commands).get(&id)
                && let Some(signal) = Signal::from_named_raw(signal)
            {
                running.signal(signal);
            }
        }
        ToGuest::Mark(text) => {
            if let Err(error) = kernel_log::mark(&text) {
                kernel_log::fatal(&format!("cannot write to the kernel log: {error}"));
            }
        }
        ToGuest::ShowBlockedTasks => {
            // The file is missing in kernels without sysrq.
            let _ = fs::write("/proc/sysrq-trigger", "w");
        }
        ToGuest::FindLeaks => {
            let link = Arc::clone(&agent.link);
            std::thread::spawn(move || link.send(&ToHost::Leaks(leaks::find())));
        }
        ToGuest::Reply { id, reply } => {
            if let Some(mut caller) = lock(&agent.calls).remove(&id) {
                // The caller may have ended meanwhile.
                let _ = write_frame(&mut caller, &reply);
            }
        }
        ToGuest::Ping => agent.link.send(&ToHost::Pong),
        ToGuest::PowerOff => {
            init::power_off();
        }
    }
}

/// Listens for calls of programs in the guest.
fn take_host_calls(agent: &Arc<Agent>) -> Result<(), String> {
    let listener =
        UnixListener::bind(HOST_SOCKET).map_err(|error| format!("{HOST_SOCKET}: {error}"))?;
    let agent = Arc::clone(agent);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            match read_frame(&mut stream) {
                Ok(Some(call)) => {
                    let id = agent.next_call.fetch_add(1, Ordering::Relaxed);
                    lock(&agent.calls).insert(id, stream);
                    agent.link.send(&ToHost::Call { id, call });
                }
                Ok(None) => {}
                Err(error) => {
                    let refusal = HostReply::Refused(error.to_string());
                    // The caller may have ended meanwhile.
                    let _ = write_frame(&mut stream, &refusal);
                }
            }
        }
    });
    Ok(())
}

/// The device node of the port called [`PORT_NAME`].
fn port() -> Option<PathBuf> {
    for entry in fs::read_dir("/sys/class/virtio-ports").ok()?.flatten() {
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim() == PORT_NAME {
            return Some(PathBuf::from("/dev").join(entry.file_name()));
        }
    }
    None
}

/// Locks a mutex even if a thread panicked while holding it: all values stay consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
