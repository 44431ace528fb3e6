//! The guest's halves of scenarios: programs that use a device while the harness does something to
//! it. The harness starts them as `guest-suites act NAME`.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::{io::Errno, process::Signal};
use vdma::Device;

use crate::{
    support::{
        MIB, NODE, PAGE,
        aio::{Context, Iocb, Opcode},
        bytes,
        child::Child,
        driver::{self, tool},
        errno, open, procfs,
        region::Region,
        wait,
    },
    watch,
};

/// An actor: its name, and what it does.
type Actor = (&'static str, fn() -> Result<()>);

/// All actors.
pub(crate) const ACTORS: &[Actor] = &[
    ("hold_an_unplugged_device", hold_an_unplugged_device),
    ("load_a_dying_device", load_a_dying_device),
    ("use_a_new_device", use_a_new_device),
    ("hold_nothing", hold_nothing),
    ("sleep_and_wake", sleep_and_wake),
];

/// Said when the harness may act.
const READY: &str = "ready";

/// Where the device never answers: 1 MiB from here. The harness starts the backend like that.
const LOST: u64 = 43 << 20;

/// Requests that one process has with the device.
const IN_FLIGHT: usize = 1000;

/// Processes that wait for a plain read.
const READERS: usize = 8;

/// How long the guest may take to see that the device is gone.
const GONE: Duration = Duration::from_secs(60);

/// How often the machine sleeps.
const SLEEPS: u64 = 3;

/// What the machine's sleep is asked for with: its memory is kept, its devices lose their power.
const SLEEP: (&str, &str) = ("/sys/power/state", "mem");

/// How often it has slept.
const SLEPT: &str = "/sys/power/suspend_stats/success";

/// Readers that are at work when the machine goes to sleep.
const SLEEPERS: u64 = 4;

/// Bytes of each of their reads.
const READ: usize = 64 * 1024;

fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{text}")?;
    out.flush().context("cannot print")
}

/// Has files, mappings, plain calls and a thousand requests open when the device goes.
fn hold_an_unplugged_device() -> Result<()> {
    let pinned = watch::pinned_pages()?;
    let device = open()?;
    let mapping = device.map(0, 4 * PAGE)?;
    mapping.store(0, 1_u32)?;
    let readers = (0..READERS)
        .map(|number| {
            Child::fork(|| {
                let mut buffer = vec![0; PAGE + number];
                let result = open()?.file().read_at(&mut buffer, LOST);
                errno::expect(result, Errno::NODEV, "a waiting read")
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let toucher = Child::fork(|| {
        let deadline = Instant::now() + GONE;
        while Instant::now() < deadline {
            mapping.load::<u32>(PAGE)?;
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("the mapping is still there")
    })?;
    let context = Context::new(u32::try_from(IN_FLIGHT)?)?;
    let region = Region::anonymous(IN_FLIGHT * 512)?;
    let mut iocbs = (0..IN_FLIGHT)
        .map(|index| {
            let (start, data) = (index * 512, index as u64);
            Iocb::transfer(
                Opcode::Read,
                device.file(),
                &region,
                start,
                512,
                LOST + start as u64,
                data,
            )
        })
        .collect::<Result<Vec<_>>>()?;
    // SAFETY: The region lives until all has completed, below.
    let taken = unsafe { context.submit(&mut iocbs) }.context("io_submit")?;
    ensure!(taken == IN_FLIGHT, "{taken} of {IN_FLIGHT} taken");
    let all = (IN_FLIGHT + READERS) as u64;
    wait::until("all requests are with the device", || {
        Ok(device.device_statistics()?.in_flight == all)
    })?;
    ensure!(watch::pinned_pages()? > pinned, "nothing is pinned");
    say(READY)?;
    wait::until("the node is gone", || Ok(!Path::new(NODE).exists()))?;
    for event in context.wait(IN_FLIGHT)? {
        ensure!(
            event.result == -i64::from(Errno::NODEV.raw_os_error()),
            "request {} ended with {}",
            event.data,
            event.result
        );
    }
    ensure!(context.ready()? == 0, "a request completed twice");
    for reader in readers {
        reader.succeed()?;
    }
    toucher
        .die_of(Signal::BUS)
        .context("a load from the mapping")?;
    let mut buffer = [0; 10];
    errno::expect(
        device.file().read_at(&mut buffer, 0),
        Errno::NODEV,
        "a read",
    )?;
    errno::expect(device.file().write_at(&buffer, 0), Errno::NODEV, "a write")?;
    let mapped = device.map(0, PAGE).map(|mapping| mapping.len());
    errno::expect_vdma(mapped, Errno::NODEV, "a mapping")?;
    wait::until("all pages are unpinned", || {
        Ok(watch::pinned_pages()? == pinned)
    })
}

/// Transfers until the device dies; what was under way has to end within the driver's time-out.
fn load_a_dying_device() -> Result<()> {
    driver::unload()?;
    tool(&["modprobe", "vdma", "timeout_ms=1500"])?;
    wait::until("the node is there", || Ok(Path::new(NODE).exists()))?;
    let device = open()?;
    let mapping = device.map(0, PAGE)?;
    let workers = (0..4)
        .map(|number| Child::fork(|| transfer_until_it_ends(number)))
        .collect::<Result<Vec<_>>>()?;
    wait::until("transfers are under way", || {
        Ok(device.device_statistics()?.completed > 200)
    })?;
    say(READY)?;
    for worker in workers {
        worker.succeed()?;
    }
    // Requests that were late fail first; then the device is given up.
    wait::until("the device is given up", || {
        let result = device.file().read_at(&mut [0; 10], 0);
        Ok(
            matches!(result, Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error())),
        )
    })?;
    let toucher = Child::fork(|| mapping.load::<u32>(0).map(|_| ()).map_err(Into::into))?;
    toucher
        .die_of(Signal::BUS)
        .context("a load from the mapping")
}

fn transfer_until_it_ends(seed: u64) -> Result<()> {
    let device = open()?;
    let mut random = fastrand::Rng::with_seed(seed);
    let mut buffer = vec![0; MIB];
    let deadline = Instant::now() + GONE;
    while Instant::now() < deadline {
        let length = random.usize(1..=MIB);
        let place = random.u64(0..16 << 20);
        let result = if random.bool() {
            device.file().read_at(&mut buffer[..length], place)
        } else {
            device.file().write_at(&buffer[..length], place)
        };
        match result {
            Ok(moved) => ensure!(moved > 0, "nothing moved"),
            Err(error) => {
                let ends = [Errno::NODEV, Errno::IO].map(|errno| Some(errno.raw_os_error()));
                ensure!(ends.contains(&error.raw_os_error()), "a transfer: {error}");
                return Ok(());
            }
        }
    }
    bail!("transfers go on without a backend")
}

/// Transfers to and maps whichever device there is.
fn use_a_new_device() -> Result<()> {
    let find = || -> Result<Option<String>> {
        for entry in fs::read_dir("/dev")?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("vdma") {
                return Ok(Some(format!("/dev/{name}")));
            }
        }
        Ok(None)
    };
    wait::until("a device node appears", || Ok(find()?.is_some()))?;
    let device = Device::open(find()?.context("the node is gone again")?)?;
    let data = bytes::random(1, 3 * MIB + 1);
    device.file().write_all_at(&data, 4097)?;
    let mut back = vec![0; data.len()];
    device.file().read_exact_at(&mut back, 4097)?;
    bytes::expect(&back, &data, "what came back")?;
    let mapping = device.map(0, 4 * MIB)?;
    mapping.read(4097, &mut back)?;
    bytes::expect(&back, &data, "through the mapping")
}

/// Fails unless the driver has given everything back.
fn hold_nothing() -> Result<()> {
    wait::until("all pages are unpinned", || Ok(watch::pinned_pages()? == 0))?;
    for name in ["vdma_request", "vdma_transfer"] {
        let shrink = format!("/sys/kernel/slab/{name}/shrink");
        wait::until(&format!("{name} is empty"), || {
            // Free objects that a CPU keeps for itself count as used until they are given back.
            fs::write(&shrink, "1").context(shrink.clone())?;
            let (used, _, _) = procfs::slab(name)?.with_context(|| format!("no {name}"))?;
            Ok(used == 0)
        })?;
    }
    let mut users = String::new();
    wait::until("nobody uses the module", || {
        users = fs::read_to_string("/sys/module/vdma/refcnt")?;
        Ok(users.trim() == "0")
    })
}

/// Puts the machine to sleep and wakes it, with readers at work, and tells the kernel log how it went:
/// the port to the harness does not survive.
fn sleep_and_wake() -> Result<()> {
    // The agent would give up when its port ends.
    if let Some(agent) = rustix::process::getppid() {
        rustix::process::kill_process(agent, Signal::STOP).context("cannot stop the agent")?;
    }
    let outcome = match sleep_under_load() {
        Ok(()) => "well".to_owned(),
        Err(error) => format!("{error:#}").replace('\n', "; "),
    };
    fs::write("/dev/kmsg", format!("vdma-mark: slept: {outcome}\n")).context("/dev/kmsg")
}

fn sleep_under_load() -> Result<()> {
    let device = open()?;
    let data = bytes::random(1, 3 * MIB + 5);
    device.file().write_all_at(&data, 777)?;
    let mapping = device.map(0, PAGE)?;
    mapping.store(16, 0x00c0_ffee_u32)?;
    let pinned = watch::pinned_pages()?;
    let enough = Path::new("/tmp/slept-enough");
    let readers = (0..SLEEPERS)
        .map(|number| {
            let (device, data) = (&device, &data);
            Child::fork(move || {
                let mut buffer = vec![0; READ];
                let mut at = usize::try_from(number)? * 4097;
                while !enough.exists() {
                    at = (at + 12_345) % (data.len() - READ);
                    device.file().read_exact_at(&mut buffer, 777 + at as u64)?;
                    bytes::expect(&buffer, &data[at..at + READ], "a read across the sleep")?;
                }
                Ok(())
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let before = times_slept()?;
    for round in 0..SLEEPS {
        wait::until_busy(&device)?;
        // The harness wakes it.
        fs::write(SLEEP.0, SLEEP.1).with_context(|| format!("sleep {round}"))?;
        ensure!(
            times_slept()? == before + round + 1,
            "the machine did not sleep in round {round}"
        );
        ensure!(
            mapping.load::<u32>(16)? == 0x00c0_ffee,
            "the mapping shows something else after sleep {round}"
        );
    }
    fs::write(enough, "").context("cannot end the readers")?;
    for reader in readers {
        reader.succeed()?;
    }
    wait::until_idle(&device)?;
    let mut back = vec![0; data.len()];
    device.file().read_exact_at(&mut back, 777)?;
    bytes::expect(&back, &data, "what was written before the sleep")?;
    mapping.store(16, 0xbeef_u32)?;
    let mut word = [0; 4];
    device.file().read_exact_at(&mut word, 16)?;
    ensure!(u32::from_le_bytes(word) == 0xbeef, "stores go elsewhere");
    let statistics = device.device_statistics()?;
    ensure!(
        statistics.failed == 0,
        "{} requests failed",
        statistics.failed
    );
    ensure!(watch::pinned_pages()? == pinned, "pages are still pinned");
    Ok(())
}

fn times_slept() -> Result<u64> {
    let text = fs::read_to_string(SLEPT).context(SLEPT)?;
    Ok(text.trim().parse()?)
}
