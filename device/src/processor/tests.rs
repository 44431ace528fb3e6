//! The processor on a ring in plain memory, without any transport.

use std::{
    cell::Cell,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use vdma_protocol::{Operation, RequestHeader, Response, Status};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::{
    Completion, Decision, IdleAction, Interceptor, MAX_BATCH, Pass, PassError, PassThrough,
    Processor, QueueHost, Request,
};
use crate::{
    engine::Engine,
    memory::{Backing, DeviceMemory},
    metrics::QueueMetrics,
    sigbus,
    virtqueue::{ActiveQueue, GuestView},
};

const SIZE: u16 = 64;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const HEADER: u64 = 0x3000;
const RESPONSES: u64 = 0x4000;

/// A queue whose chains 0, 2, 4, … are NOPs, without the event index.
struct Bench<I> {
    memory: GuestMemoryMmap,
    view: GuestView,
    queue: Queue,
    metrics: Arc<QueueMetrics>,
    processor: Processor<I>,
}

impl<I: Interceptor> Bench<I> {
    fn new(interceptor: I) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        let header = RequestHeader::new(Operation::Nop, 0, 0, 0).to_bytes();
        memory.write_slice(&header, GuestAddress(HEADER)).unwrap();
        for head in (0..SIZE).step_by(2) {
            let response = RESPONSES + 16 * u64::from(head);
            let descriptors = [(HEADER, 32u32, 1u16, head + 1), (response, 16, 2, 0)];
            for (at, (address, length, flags, next)) in (u64::from(head)..).zip(descriptors) {
                let mut bytes = [0; 16];
                bytes[..8].copy_from_slice(&address.to_le_bytes());
                bytes[8..12].copy_from_slice(&length.to_le_bytes());
                bytes[12..14].copy_from_slice(&flags.to_le_bytes());
                bytes[14..].copy_from_slice(&next.to_le_bytes());
                memory.write_slice(&bytes, GuestAddress(16 * at)).unwrap();
            }
        }
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_size(SIZE);
        queue.try_set_desc_table_address(GuestAddress(0)).unwrap();
        queue
            .try_set_avail_ring_address(GuestAddress(AVAILABLE))
            .unwrap();
        queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
        queue.set_ready(true);
        let device = DeviceMemory::open(Backing::Memfd, Some(4096)).unwrap();
        let view = GuestView::new(&memory, &device);
        let metrics = Arc::new(QueueMetrics::default());
        let engine = Engine::new(Arc::new(device));
        Self {
            memory,
            view,
            queue,
            processor: Processor::new(engine, Arc::clone(&metrics), interceptor),
            metrics,
        }
    }

    fn load(&self, address: u64) -> u16 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    fn store(&self, address: u64, value: u16) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    /// Makes this number of NOPs available.
    fn submit(&self, count: u16) {
        let index = self.load(AVAILABLE + 2);
        for number in (0..count).map(|number| index.wrapping_add(number)) {
            let slot = u64::from(number % SIZE);
            self.store(AVAILABLE + 4 + 2 * slot, 2 * (number % (SIZE / 2)));
        }
        self.store(AVAILABLE + 2, index.wrapping_add(count));
    }

    fn used_index(&self) -> u16 {
        self.load(USED + 2)
    }

    fn pass(&mut self, host: &mut Host) -> Result<Pass, PassError> {
        self.processor.pass(&mut self.queue, &self.view, host)
    }
}

/// A host that counts, and treats an empty ring always in the same way.
struct Host {
    idle_action: IdleAction,
    calls: u32,
    executed: u32,
    /// Requests after which another thread wants the queue.
    interrupted_after: Option<u32>,
}

impl Host {
    fn new(idle_action: IdleAction) -> Self {
        Self {
            idle_action,
            calls: 0,
            executed: 0,
            interrupted_after: None,
        }
    }
}

impl QueueHost for Host {
    fn call(&mut self) {
        self.calls += 1;
    }

    fn idle_action(&mut self) -> IdleAction {
        self.idle_action
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted_after
            .is_some_and(|count| self.executed >= count)
    }

    fn executed(&mut self, _head: u16, completion: Completion) {
        assert_eq!(completion.status, Status::OK);
        self.executed += 1;
    }
}

#[test]
fn each_batch_is_published_with_one_call() {
    let mut bench = Bench::new(PassThrough);
    let mut host = Host::new(IdleAction::EnableNotification);
    let count = SIZE / 2;
    bench.submit(count);
    bench.submit(8);
    assert_eq!(bench.pass(&mut host), Ok(Pass::AwaitKick));
    assert_eq!((host.executed, host.calls), (40, 2));
    assert_eq!(MAX_BATCH, usize::from(count));
    assert_eq!((bench.used_index(), bench.metrics.calls.get()), (40, 2));
    assert_eq!(bench.load(USED), 0, "kicks are enabled");
    let mut response = [0xff; Response::SIZE];
    bench
        .memory
        .read_slice(&mut response, GuestAddress(RESPONSES))
        .unwrap();
    assert_eq!(
        Response::from_bytes(&response),
        Response::new(Status::OK, 0, 0)
    );
    // The driver asks for no calls.
    bench.store(AVAILABLE, 1);
    bench.submit(1);
    assert_eq!(bench.pass(&mut host), Ok(Pass::AwaitKick));
    assert_eq!((host.executed, host.calls), (41, 2));
}

#[test]
fn a_host_that_yields_gets_its_thread_back_without_kicks() {
    let mut bench = Bench::new(PassThrough);
    let mut host = Host::new(IdleAction::Yield);
    bench.submit(1);
    assert_eq!(bench.pass(&mut host), Ok(Pass::Yielded));
    assert_eq!(bench.load(USED), 1, "kicks stay disabled");
    assert_eq!(bench.metrics.poll_hits.get(), 0);
    bench.submit(3);
    assert_eq!(bench.pass(&mut host), Ok(Pass::Yielded));
    assert_eq!(bench.metrics.poll_hits.get(), 3);
    assert_eq!(bench.used_index(), 4);
}

/// Holds the third request, and fails to complete the fourth.
struct HoldThenFail {
    hold: bool,
    seen: u16,
    until: Instant,
}

impl Interceptor for HoldThenFail {
    type Plan = u16;

    fn plan(&mut self, _request: &Request<'_, '_>, index: u16) -> Decision<u16> {
        self.seen = index + 1;
        if self.hold && self.seen == 3 {
            Decision::HoldUntil(self.until)
        } else {
            Decision::Execute(self.seen)
        }
    }

    fn execute(
        &mut self,
        request: &Request<'_, '_>,
        engine: &mut Engine,
        _plan: &u16,
    ) -> Completion {
        request.execute(engine)
    }

    fn complete(
        &mut self,
        queue: &mut ActiveQueue<'_, '_>,
        head: u16,
        completion: Completion,
        plan: &u16,
    ) -> Result<(), PassError> {
        if *plan == 4 {
            return Err(PassError::Injected);
        }
        queue.add_used(u32::from(head), completion.written);
        Ok(())
    }

    fn end_batch(&mut self, _queue: &mut ActiveQueue<'_, '_>) {}

    fn reset(&mut self) {
        self.hold = false;
    }
}

#[test]
fn an_interceptor_holds_a_request_or_stops_the_queue() {
    let until = Instant::now() + Duration::from_secs(3600);
    let mut bench = Bench::new(HoldThenFail {
        hold: true,
        seen: 0,
        until,
    });
    let mut host = Host::new(IdleAction::EnableNotification);
    bench.submit(5);
    for _ in 0..2 {
        assert_eq!(bench.pass(&mut host), Ok(Pass::HeldUntil(until)));
        assert_eq!((bench.queue.next_avail(), bench.used_index()), (2, 2));
    }
    // Completions before the error are published.
    bench.processor.reset();
    assert_eq!(bench.pass(&mut host), Err(PassError::Injected));
    assert_eq!((bench.queue.next_avail(), bench.used_index()), (4, 3));
    assert_eq!(bench.metrics.ring_errors.get(), 1);
    assert_eq!(
        bench.metrics.operation(Some(Operation::Nop)).requests.get(),
        4
    );
}

/// A thread that waits for the queue gets it after the request in progress.
#[test]
fn a_pass_ends_after_one_request_for_a_waiting_thread() {
    let mut bench = Bench::new(PassThrough);
    let mut host = Host::new(IdleAction::EnableNotification);
    host.interrupted_after = Some(2);
    bench.submit(5);
    assert_eq!(bench.pass(&mut host), Ok(Pass::Continue));
    assert_eq!((host.executed, host.calls, bench.used_index()), (2, 1, 2));
    host.interrupted_after = None;
    assert_eq!(bench.pass(&mut host), Ok(Pass::AwaitKick));
    assert_eq!(bench.used_index(), 5);
}

/// Notes the used index that the driver sees while each request is executed.
struct Observer {
    memory: GuestMemoryMmap,
    seen: Vec<u16>,
}

impl Interceptor for Observer {
    type Plan = ();

    fn plan(&mut self, _request: &Request<'_, '_>, _index: u16) -> Decision<()> {
        Decision::Execute(())
    }

    fn execute(&mut self, request: &Request<'_, '_>, engine: &mut Engine, (): &()) -> Completion {
        let used = self.memory.read_obj(GuestAddress(USED + 2)).unwrap();
        self.seen.push(used);
        request.execute(engine)
    }

    fn complete(
        &mut self,
        queue: &mut ActiveQueue<'_, '_>,
        head: u16,
        completion: Completion,
        (): &(),
    ) -> Result<(), PassError> {
        queue.add_used(u32::from(head), completion.written);
        Ok(())
    }

    fn end_batch(&mut self, _queue: &mut ActiveQueue<'_, '_>) {}

    fn reset(&mut self) {}
}

/// Whatever takes long is a batch of its own: completions do not wait for it.
#[test]
fn completions_before_a_long_request_are_visible() {
    for operation in [Operation::Flush, Operation::Discard] {
        let mut bench = Bench::new(Observer {
            memory: GuestMemoryMmap::new(),
            seen: Vec::new(),
        });
        bench.processor.interceptor.memory = bench.memory.clone();
        let header = RequestHeader::new(operation, 0, 0, 0).to_bytes();
        let long = HEADER + 32;
        bench
            .memory
            .write_slice(&header, GuestAddress(long))
            .unwrap();
        // The third and the fourth request.
        for head in [4, 6] {
            bench
                .memory
                .write_obj(long, GuestAddress(16 * head))
                .unwrap();
        }
        let mut host = Host::new(IdleAction::EnableNotification);
        bench.submit(6);
        assert_eq!(bench.pass(&mut host), Ok(Pass::AwaitKick));
        assert_eq!(bench.processor.interceptor.seen, [0, 0, 2, 3, 4, 4]);
        assert_eq!((bench.used_index(), host.calls), (6, 4));
    }
}

/// The used index wraps from 65535 to 0 between two calls that the driver asks for.
#[test]
fn the_event_index_wraps() {
    let mut bench = Bench::new(PassThrough);
    let begin = u16::MAX - 1;
    bench.queue.set_event_idx(true);
    bench.queue.set_next_avail(begin);
    bench.queue.set_next_used(begin);
    bench.store(AVAILABLE + 2, begin);
    bench.store(USED + 2, begin);
    let used_event = AVAILABLE + 4 + 2 * u64::from(SIZE);
    let mut host = Host::new(IdleAction::EnableNotification);
    for (requests, event, calls) in [
        // The first one calls unconditionally.
        (1, 0, 1),
        (1, 0, 1),
        (1, 0, 2),
        (2, 0, 2),
    ] {
        bench.store(used_event, event);
        bench.submit(requests);
        assert_eq!(bench.pass(&mut host), Ok(Pass::AwaitKick));
        assert_eq!(host.calls, calls, "{}", bench.used_index());
    }
    // Across the wrap in one batch.
    for (event, called) in [(u16::MAX, true), (1, true), (2, false), (begin - 1, false)] {
        bench.queue.set_next_avail(begin);
        bench.queue.set_next_used(begin);
        bench.store(AVAILABLE + 2, begin);
        bench.processor.reset();
        bench.store(used_event, event);
        bench.processor.signalled_used = Some(begin);
        let before = host.calls;
        bench.submit(4);
        assert_eq!(bench.pass(&mut host), Ok(Pass::AwaitKick));
        assert_eq!(bench.used_index(), 2);
        assert_eq!(host.calls - before, u32::from(called), "{event}");
    }
}

/// Has the hardware lose the page at a guest address while the third request is executed.
struct LosePage {
    seen: u16,
    host_address: Rc<Cell<u64>>,
}

impl Interceptor for LosePage {
    type Plan = ();

    fn plan(&mut self, _request: &Request<'_, '_>, _index: u16) -> Decision<()> {
        self.seen += 1;
        Decision::Execute(())
    }

    fn execute(&mut self, request: &Request<'_, '_>, engine: &mut Engine, (): &()) -> Completion {
        if self.seen == 3 {
            sigbus::lose_memory(self.host_address.get() as *const u8);
        }
        request.execute(engine)
    }

    fn complete(
        &mut self,
        queue: &mut ActiveQueue<'_, '_>,
        head: u16,
        completion: Completion,
        (): &(),
    ) -> Result<(), PassError> {
        PassThrough.complete(queue, head, completion, &())
    }

    fn end_batch(&mut self, _queue: &mut ActiveQueue<'_, '_>) {}

    fn reset(&mut self) {}
}

/// Notes the statuses of requests, and their used lengths.
#[derive(Default)]
struct Notes(Vec<(Status, u32)>);

impl QueueHost for Notes {
    fn call(&mut self) {}

    fn executed(&mut self, _head: u16, completion: Completion) {
        self.0.push((completion.status, completion.written));
    }
}

/// Five requests, the third of which loses the page at `address`.
fn lose_page(address: u64) -> (Result<Pass, PassError>, Notes, Bench<LosePage>) {
    let host_address = Rc::new(Cell::new(0));
    let mut bench = Bench::new(LosePage {
        seen: 0,
        host_address: Rc::clone(&host_address),
    });
    let found = bench.memory.get_host_address(GuestAddress(address));
    host_address.set(found.unwrap() as u64);
    bench.submit(5);
    let mut notes = Notes::default();
    let result = bench
        .processor
        .pass(&mut bench.queue, &bench.view, &mut notes);
    (result, notes, bench)
}

#[test]
fn memory_lost_by_the_hardware_costs_the_requests_that_use_it() {
    let (result, Notes(notes), bench) = lose_page(HEADER);
    assert_eq!(result, Ok(Pass::AwaitKick));
    let (good, bad) = ((Status::OK, 16), (Status::IO_ERROR, 16));
    assert_eq!(notes, [good, good, bad, bad, bad]);
    assert_eq!(bench.used_index(), 5);
}

#[test]
fn a_response_to_lost_memory_is_reported_as_not_written() {
    let (result, Notes(notes), _) = lose_page(RESPONSES);
    assert_eq!(result, Ok(Pass::AwaitKick));
    let (good, bad) = ((Status::OK, 16), (Status::IO_ERROR, 0));
    assert_eq!(notes, [good, good, bad, bad, bad]);
}

#[test]
fn a_ring_in_lost_memory_stops() {
    for part in [0, AVAILABLE, USED] {
        let (result, Notes(notes), mut bench) = lose_page(part);
        assert_eq!(result, Err(PassError::GuestMemory));
        assert_eq!(notes.len(), 2);
        // It stays so after a reset, until the front end maps the memory again.
        bench.processor.reset();
        let mut host = Host::new(IdleAction::EnableNotification);
        assert_eq!(bench.pass(&mut host), Err(PassError::GuestMemory));
    }
}
