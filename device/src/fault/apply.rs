//! Carrying out what the injector decides, at the points where the processor lets it intervene.

use std::{sync::Arc, time::Instant};

use vdma_protocol::{Operation, RequestHeader, ResultValue, Status};

use super::{
    injector::{Injector, Plan},
    kind::FaultKind,
    random::flipped_bits,
    spec::FaultSpec,
};
use crate::{
    engine::{Engine, Outcome, Segments},
    metrics::QueueMetrics,
    processor::{Completion, Decision, Interceptor, PassError, Request},
    virtqueue::ActiveQueue,
};

/// Injects faults into the requests of one queue.
#[derive(Debug)]
pub struct FaultInterceptor {
    injector: Injector,
    metrics: Arc<QueueMetrics>,
    held: Option<Held>,
    /// A used entry that follows the next one: its id and length.
    swapped: Option<(u32, u32)>,
}

/// A request that is held for a time, with the faults that happen to it.
#[derive(Clone, Copy, Debug)]
struct Held {
    /// Index in the available ring.
    index: u16,
    plan: Plan,
    until: Instant,
}

impl FaultInterceptor {
    /// Faults for the requests of `queue`, counted in `metrics`; `None` when `specs` has none for
    /// this queue.
    #[must_use]
    pub fn new(specs: &[FaultSpec], queue: u16, metrics: Arc<QueueMetrics>) -> Option<Self> {
        Injector::new(specs, queue).map(|injector| Self {
            injector,
            metrics,
            held: None,
            swapped: None,
        })
    }

    /// The faults that happen to the request at `index` of the available ring, if any. They stay
    /// the same for a request that is held.
    fn decide(&mut self, request: &Request<'_, '_>, index: u16) -> Option<Plan> {
        if let Some(held) = self.held.filter(|held| held.index == index) {
            return Some(held.plan);
        }
        let Self {
            injector, metrics, ..
        } = self;
        let count = |kind: FaultKind| metrics.fault_injected(kind as usize);
        let plan = injector.plan(request.header()?, count)?;
        self.held = plan.delay.map(|delay| Held {
            index,
            plan,
            until: Instant::now() + delay,
        });
        Some(plan)
    }

    fn add_swapped(&mut self, queue: &mut ActiveQueue<'_, '_>) {
        if let Some((id, length)) = self.swapped.take() {
            queue.add_used(id, length);
        }
    }
}

impl Interceptor for FaultInterceptor {
    type Plan = Option<Plan>;

    fn plan(&mut self, request: &Request<'_, '_>, index: u16) -> Decision<Self::Plan> {
        let plan = self.decide(request, index);
        if plan.is_some() {
            if let Some(held) = self.held.filter(|held| held.until > Instant::now()) {
                return Decision::HoldUntil(held.until);
            }
            self.held = None;
        }
        Decision::Execute(plan)
    }

    fn execute(
        &mut self,
        request: &Request<'_, '_>,
        engine: &mut Engine,
        plan: &Self::Plan,
    ) -> Completion {
        match plan {
            None => request.execute(engine),
            Some(plan) => request.respond(|header, outgoing, incoming| {
                execute_with(plan, engine, header, outgoing, incoming)
            }),
        }
    }

    fn complete(
        &mut self,
        queue: &mut ActiveQueue<'_, '_>,
        head: u16,
        completion: Completion,
        plan: &Self::Plan,
    ) -> Result<(), PassError> {
        let plan = plan.unwrap_or_default();
        if plan.vanish {
            kill_this_process();
        }
        if plan.stop_queue {
            return Err(PassError::Injected);
        }
        if plan.drop {
            return Ok(());
        }
        let (id, length) = used_entry(&plan, head, completion.written);
        if plan.swap && self.swapped.is_none() && id == u32::from(head) {
            self.swapped = Some((id, length));
            return Ok(());
        }
        for _ in 0..1 + u32::from(plan.twice) {
            queue.add_used(id, length);
        }
        self.add_swapped(queue);
        Ok(())
    }

    fn end_batch(&mut self, queue: &mut ActiveQueue<'_, '_>) {
        self.add_swapped(queue);
    }

    fn reset(&mut self) {
        self.held = None;
    }
}

/// Executes a request with the faults that concern the operation itself.
fn execute_with(
    plan: &Plan,
    engine: &mut Engine,
    header: &RequestHeader,
    mut outgoing: Segments<'_, '_>,
    mut incoming: Segments<'_, '_>,
) -> Outcome {
    if let Some(status) = plan.fail {
        return Outcome::refused(status);
    }
    let mut header = *header;
    if let Some(bytes) = plan.short {
        let length = header.length.get();
        let bytes = bytes.unwrap_or(length / 2).min(length);
        header.length = bytes.into();
        outgoing.truncate(bytes);
        incoming.truncate(bytes);
    }
    let outcome = engine.execute(&header, &outgoing, &incoming);
    match plan.flip {
        Some((bits, seed)) if outcome.status == Status::OK => {
            flip(engine, &header, incoming, outcome, bits, seed)
        }
        _ => outcome,
    }
}

/// Inverts bits of what an operation produced: incoming data, device memory, or the result value.
fn flip(
    engine: &Engine,
    header: &RequestHeader,
    incoming: Segments<'_, '_>,
    mut outcome: Outcome,
    bits: u32,
    seed: u64,
) -> Outcome {
    let Some(operation) = Operation::from_code(header.operation.get()) else {
        return outcome;
    };
    let shape = operation.shape();
    let length = header.length.get();
    if shape.incoming {
        for bit in flipped_bits(bits, seed, 8 * length) {
            flip_bit(incoming, bit);
        }
    } else if shape.writes_device_memory() {
        if let Some(range) = engine.memory().slice(header.offset.get(), length) {
            for bit in flipped_bits(bits, seed, 8 * length) {
                flip_bit(Segments::new(&[range]), bit);
            }
        }
    } else if shape.value != ResultValue::None {
        for bit in flipped_bits(bits, seed, 32) {
            outcome.value ^= 1 << bit;
        }
    }
    outcome
}

/// Inverts one bit; does nothing beyond the end.
fn flip_bit(mut segments: Segments<'_, '_>, bit: u64) {
    let skipped = usize::try_from(bit / 8).is_ok_and(|count| segments.advance(count));
    let mut rest = segments;
    if let Some([byte]) = rest.read().filter(|_| skipped) {
        // Cannot fail: the byte was just read.
        let _ = segments.write(&[byte ^ 1u8 << (bit % 8)]);
    }
}

/// Id and length of the used entry for a request.
fn used_entry(plan: &Plan, head: u16, written: u32) -> (u32, u32) {
    let id = match plan.wrong_id {
        None => u32::from(head),
        Some(None) => u32::from(head ^ 1),
        Some(Some(id)) => id,
    };
    let length = match plan.wrong_length {
        None => written,
        Some(None) => written.wrapping_add(1),
        Some(Some(length)) => length,
    };
    (id, length)
}

/// Ends the process without a message to the front end, a flush or any other clean-up.
fn kill_this_process() {
    let this = rustix::process::getpid();
    let _ = rustix::process::kill_process(this, rustix::process::Signal::KILL);
}
