//! Deciding for each request which faults happen to it.

use std::time::Duration;

use vdma_protocol::{RequestHeader, Status};

use super::{
    kind::FaultKind,
    random::Random,
    spec::{Action, FaultSpec},
};

/// The faults that happen to one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Hold the request for this time.
    pub delay: Option<Duration>,
    /// Fail with this status without executing the request.
    pub fail: Option<Status>,
    /// Process only this number of bytes; half for `Some(None)`.
    pub short: Option<Option<u64>>,
    /// Invert this number of bits, at positions determined by this seed.
    pub flip: Option<(u32, u64)>,
    /// Add no used entry.
    pub drop: bool,
    /// Add the used entry twice.
    pub twice: bool,
    /// Put this id into the used entry; one that is not the request's for `Some(None)`.
    pub wrong_id: Option<Option<u32>>,
    /// Put this length into the used entry; one more than the right one for `Some(None)`.
    pub wrong_length: Option<Option<u32>>,
    /// Complete the request after the next one.
    pub swap: bool,
    /// Stop the queue.
    pub stop_queue: bool,
    /// Kill the backend process.
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

/// Decides about the requests of one queue.
#[derive(Clone, Debug)]
pub struct Injector {
    rules: Vec<Rule>,
}

#[derive(Clone, Debug)]
struct Rule {
    spec: FaultSpec,
    /// Requests that operation and range selected.
    selected: u64,
    /// Faults that have been injected.
    injected: u64,
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
                selected: 0,
                injected: 0,
                // Each rule of each queue has its own stream of random numbers.
                random: Random::new(spec.seed ^ (index as u64) << 48 ^ u64::from(queue) << 32),
            })
            .collect();
        (!rules.is_empty()).then_some(Self { rules })
    }

    /// The faults that happen to the next request, if any; `report` is called for each. A request
    /// without a header is not to be passed here: no fault can select it.
    pub fn plan(
        &mut self,
        header: &RequestHeader,
        mut report: impl FnMut(FaultKind),
    ) -> Option<Plan> {
        let mut plan = None;
        for rule in &mut self.rules {
            if rule.selects(header) {
                report(rule.spec.action.kind());
                plan.get_or_insert_with(Plan::default)
                    .add(rule.spec.action, &mut rule.random);
            }
        }
        plan
    }
}

impl Rule {
    /// Whether the rule's fault happens to this request, which is counted.
    fn selects(&mut self, header: &RequestHeader) -> bool {
        if !self.spec.selects(header) {
            return false;
        }
        self.selected += 1;
        let Some(beyond) = self
            .selected
            .checked_sub(self.spec.after)
            .filter(|&n| n > 0)
        else {
            return false;
        };
        let selects = beyond.is_multiple_of(self.spec.every)
            && self.injected < self.spec.count
            && self.random.chance(self.spec.probability);
        self.injected += u64::from(selects);
        selects
    }
}

#[cfg(test)]
mod tests {
    use vdma_protocol::Operation;

    use super::*;

    fn selected(spec: &str, queue: u16, requests: usize) -> Vec<usize> {
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
        assert_eq!(selected("drop", 0, 3), [1, 2, 3]);
        assert_eq!(selected("drop,every=3", 0, 10), [3, 6, 9]);
        assert_eq!(selected("drop,after=4", 0, 6), [5, 6]);
        assert_eq!(selected("drop,after=4,every=2,count=2", 0, 20), [6, 8]);
        assert_eq!(selected("drop,op=write", 0, 20), [0usize; 0]);
        assert_eq!(selected("drop,queue=1", 0, 20), [0usize; 0]);
        assert_eq!(selected("drop,probability=0", 0, 100), [0usize; 0]);
    }

    #[test]
    fn probability_is_reproducible_and_accurate() {
        let first = selected("drop,probability=0.25,seed=3", 0, 10_000);
        assert_eq!(first, selected("drop,probability=0.25,seed=3", 0, 10_000));
        assert_ne!(first, selected("drop,probability=0.25,seed=4", 0, 10_000));
        assert_ne!(first, selected("drop,probability=0.25,seed=3", 1, 10_000));
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
