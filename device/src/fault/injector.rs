//! Deciding, request by request, what goes wrong.

use std::time::Duration;

use vdma_protocol::{RequestHeader, Status};

use super::{Action, FaultKind, FaultSpec};

/// All that goes wrong with one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Wait before anything is done.
    pub delay: Option<Duration>,
    /// Answer this and do nothing.
    pub fail: Option<Status>,
    /// Do only so many bytes; half for `Some(None)`.
    pub short: Option<Option<u64>>,
    /// Invert these many bits, chosen by these random numbers.
    pub flip: Option<(u32, u64)>,
    /// Do not complete.
    pub drop: bool,
    /// Complete twice.
    pub twice: bool,
    /// Complete this id; another than the request's for `Some(None)`.
    pub wrong_id: Option<Option<u32>>,
    /// Report this length; one more than the right one for `Some(None)`.
    pub wrong_length: Option<Option<u32>>,
    /// Complete after the next one.
    pub swap: bool,
    /// Stop the queue.
    pub stop_queue: bool,
    /// End the daemon.
    pub vanish: bool,
}

impl Plan {
    fn add(&mut self, action: Action, random: &mut Random) {
        match action {
            Action::Delay(time) => self.delay = Some(self.delay.unwrap_or_default() + time),
            Action::Fail(status) => self.fail = Some(status),
            Action::Short(bytes) => self.short = Some(bytes),
            Action::Flip(bits) => self.flip = Some((bits, random.next())),
            Action::Drop => self.drop = true,
            Action::Twice => self.twice = true,
            Action::WrongId(id) => self.wrong_id = Some(id),
            Action::WrongLength(length) => self.wrong_length = Some(length),
            Action::Swap => self.swap = true,
            Action::StopQueue => self.stop_queue = true,
            Action::Vanish => self.vanish = true,
        }
    }
}

/// Decides for the requests of one queue.
#[derive(Clone, Debug)]
pub struct Injector {
    rules: Vec<Rule>,
}

#[derive(Clone, Debug)]
struct Rule {
    spec: FaultSpec,
    /// Requests that operation and range chose.
    met: u64,
    /// Faults so far.
    happened: u64,
    random: Random,
}

impl Injector {
    /// An injector for `queue`, or `None` when no fault can happen there.
    #[must_use]
    pub fn new(specs: &[FaultSpec], queue: u16) -> Option<Self> {
        let rules: Vec<Rule> = specs
            .iter()
            .enumerate()
            .filter(|(_, spec)| spec.on_queue(queue))
            .map(|(index, spec)| Rule {
                spec: spec.clone(),
                met: 0,
                happened: 0,
                // Rules and queues draw from streams of their own.
                random: Random::new(spec.seed ^ (index as u64) << 48 ^ u64::from(queue) << 32),
            })
            .collect();
        (!rules.is_empty()).then_some(Self { rules })
    }

    /// What happens to the next request; `report` is told of each fault. Requests without a header
    /// never meet any.
    pub fn plan(
        &mut self,
        header: &RequestHeader,
        mut report: impl FnMut(FaultKind),
    ) -> Option<Plan> {
        let mut plan = None;
        for rule in &mut self.rules {
            if rule.strikes(header) {
                report(rule.spec.action.kind());
                plan.get_or_insert_with(Plan::default)
                    .add(rule.spec.action, &mut rule.random);
            }
        }
        plan
    }
}

impl Rule {
    fn strikes(&mut self, header: &RequestHeader) -> bool {
        if !self.spec.chooses(header) {
            return false;
        }
        self.met += 1;
        let Some(beyond) = self.met.checked_sub(self.spec.after).filter(|&n| n > 0) else {
            return false;
        };
        let strikes = beyond.is_multiple_of(self.spec.every)
            && self.happened < self.spec.count
            && self.random.chance(self.spec.probability);
        self.happened += u64::from(strikes);
        strikes
    }
}

/// Splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    #[allow(clippy::cast_precision_loss)] // 53 bits are what a double holds.
    fn chance(&mut self, probability: f64) -> bool {
        probability >= 1.0 || (self.next() >> 11) as f64 / ((1u64 << 53) as f64) < probability
    }
}

/// Bit positions below `bits`, `count` of them, from one random number on.
pub(crate) fn flipped_bits(count: u32, seed: u64, bits: u64) -> impl Iterator<Item = u64> {
    let mut random = Random::new(seed);
    (0..count)
        .filter(move |_| bits > 0)
        .map(move |_| random.next() % bits)
}

#[cfg(test)]
mod tests {
    use vdma_protocol::Operation;

    use super::*;

    fn strikes(spec: &str, queue: u16, requests: usize) -> Vec<usize> {
        let header = RequestHeader::new(Operation::Read, 0, 4096, 0);
        let Some(mut injector) = Injector::new(&[spec.parse().unwrap()], queue) else {
            return Vec::new();
        };
        (1..=requests)
            .filter(|_| injector.plan(&header, |_| {}).is_some())
            .collect()
    }

    #[test]
    fn counts_select_exact_requests() {
        assert_eq!(strikes("drop", 0, 3), [1, 2, 3]);
        assert_eq!(strikes("drop,every=3", 0, 10), [3, 6, 9]);
        assert_eq!(strikes("drop,after=4", 0, 6), [5, 6]);
        assert_eq!(strikes("drop,after=4,every=2,count=2", 0, 20), [6, 8]);
        assert_eq!(strikes("drop,op=write", 0, 20), [0usize; 0]);
        assert_eq!(strikes("drop,queue=1", 0, 20), [0usize; 0]);
        assert_eq!(strikes("drop,probability=0", 0, 100), [0usize; 0]);
    }

    #[test]
    fn probability_is_reproducible_and_accurate() {
        let first = strikes("drop,probability=0.25,seed=3", 0, 10_000);
        assert_eq!(first, strikes("drop,probability=0.25,seed=3", 0, 10_000));
        assert_ne!(first, strikes("drop,probability=0.25,seed=4", 0, 10_000));
        assert_ne!(first, strikes("drop,probability=0.25,seed=3", 1, 10_000));
        assert!((2300..2700).contains(&first.len()), "{}", first.len());
    }

    #[test]
    fn several_faults_apply_to_one_request() {
        let specs: Vec<FaultSpec> = ["delay=1ms", "delay=2ms", "fail=3", "twice"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        let mut kinds = Vec::new();
        let header = RequestHeader::new(Operation::Nop, 0, 0, 0);
        let plan = Injector::new(&specs, 0)
            .unwrap()
            .plan(&header, |kind| kinds.push(kind))
            .unwrap();
        assert_eq!(plan.delay, Some(Duration::from_millis(3)));
        assert_eq!((plan.fail, plan.twice), (Some(Status(3)), true));
        assert_eq!(kinds.len(), 4);
    }
}
