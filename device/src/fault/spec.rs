//! The grammar of `--fault`.

use std::{str::FromStr, time::Duration};

use thiserror::Error;
use vdma_protocol::{Operation, RequestHeader, Status};

use super::kind::FaultKind;
use crate::size::{SizeError, parse_size};

/// The grammar, for `--help`.
pub const HELP: &str = "\
FAULT is KIND[=VALUE][,SELECTOR=VALUE]...
  delay=TIME           hold the request and all behind it (10us, 5ms, 1s)
  fail[=STATUS]        fail with STATUS without executing the request: unsupported, bad-flags,
                       bad-range, bad-length, bad-address, io-error (default), bad-request, or a
                       number
  short[=BYTES]        process only the first BYTES (default: half) and report that count
  flip[=BITS]          invert BITS (default 1) of the data, or of the result value
  drop                 execute the request and never complete it
  twice                complete the request twice
  wrong-id[=ID]        complete descriptor ID (default: one that is not the request's)
  wrong-length[=LEN]   report LEN bytes written (default: one more than were written)
  swap                 complete the request after the next one of its batch, if there is one
  stop-queue           stop the queue as if its ring were corrupt
  vanish               kill the backend, as kill -9 does
Selectors; a request has to match all of them, and each queue counts for itself:
  op=NAME[+NAME]...    these operations: nop, read, write, copy, move, fill, fill-guest, compare,
                       crc32c, crc32c-guest, read-crc32c, write-crc32c, flush, discard
  queue=N              this queue
  range=OFFSET+LENGTH  accesses these bytes of device memory (sizes as above)
  after=N              not the first N requests that match the selectors above
  every=N              every Nth of the remaining requests
  probability=P        each of the remaining requests with this probability (0 to 1)
  count=N              at most N times
  seed=N               seed of the random numbers (default 0)
Example: --fault fail=io-error,op=write,every=100 --fault delay=5ms,probability=0.01,seed=7";

/// Why a fault specification is invalid.
#[derive(Debug, Error, PartialEq)]
pub enum FaultError {
    /// Unknown kind.
    #[error("'{0}' is not a kind of fault; see --help for the kinds")]
    Kind(String),
    /// Unknown selector.
    #[error("'{0}' is not a selector; see --help for the selectors")]
    Selector(String),
    /// A repeated selector.
    #[error("'{0}' is given twice; give it once")]
    Twice(String),
    /// A value for a kind that takes none.
    #[error("'{0}' takes no value; leave out '=...'")]
    NoValue(&'static str),
    /// A missing value.
    #[error("'{0}' needs a value; write {0}=VALUE")]
    NeedsValue(String),
    /// An invalid value.
    #[error("'{value}' is not a valid {what}; {remedy}")]
    Value {
        /// The value given.
        value: String,
        /// What it has to be.
        what: &'static str,
        /// How to write one.
        remedy: &'static str,
    },
    /// An invalid byte count.
    #[error(transparent)]
    Size(#[from] SizeError),
}

/// What happens to a selected request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// See [`FaultKind::Delay`].
    Delay(Duration),
    /// See [`FaultKind::Fail`].
    Fail(Status),
    /// See [`FaultKind::Short`]; `None` is half.
    Short(Option<u64>),
    /// See [`FaultKind::Flip`].
    Flip(u32),
    /// See [`FaultKind::Drop`].
    Drop,
    /// See [`FaultKind::Twice`].
    Twice,
    /// See [`FaultKind::WrongId`]; `None` is an id that is not the request's.
    WrongId(Option<u32>),
    /// See [`FaultKind::WrongLength`]; `None` is one more than were written.
    WrongLength(Option<u32>),
    /// See [`FaultKind::Swap`].
    Swap,
    /// See [`FaultKind::StopQueue`].
    StopQueue,
    /// See [`FaultKind::Vanish`].
    Vanish,
}

impl Action {
    /// The kind of fault.
    #[must_use]
    pub const fn kind(self) -> FaultKind {
        match self {
            Self::Delay(_) => FaultKind::Delay,
            Self::Fail(_) => FaultKind::Fail,
            Self::Short(_) => FaultKind::Short,
            Self::Flip(_) => FaultKind::Flip,
            Self::Drop => FaultKind::Drop,
            Self::Twice => FaultKind::Twice,
            Self::WrongId(_) => FaultKind::WrongId,
            Self::WrongLength(_) => FaultKind::WrongLength,
            Self::Swap => FaultKind::Swap,
            Self::StopQueue => FaultKind::StopQueue,
            Self::Vanish => FaultKind::Vanish,
        }
    }
}

/// One fault and the requests that it selects.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultSpec {
    pub(super) action: Action,
    /// Mask of operations; `None` selects all, unknown ones included.
    operations: Option<u64>,
    queue: Option<u16>,
    /// Offset and length in device memory.
    range: Option<(u64, u64)>,
    pub(super) after: u64,
    pub(super) every: u64,
    pub(super) probability: f64,
    pub(super) count: u64,
    pub(super) seed: u64,
}

impl FaultSpec {
    /// What the fault does.
    #[must_use]
    pub fn action(&self) -> Action {
        self.action
    }

    /// Whether the fault can happen on a queue at all.
    #[must_use]
    pub fn on_queue(&self, queue: u16) -> bool {
        self.queue.is_none_or(|wanted| wanted == queue)
    }

    /// Whether operation and range select this request.
    pub(super) fn selects(&self, header: &RequestHeader) -> bool {
        let operation = Operation::from_code(header.operation.get());
        let operation_fits = self
            .operations
            .is_none_or(|mask| operation.is_some_and(|operation| operation.bit() & mask != 0));
        operation_fits
            && self
                .range
                .is_none_or(|range| accesses(operation, header, range))
    }
}

/// Whether a request accesses any byte of a range of device memory.
fn accesses(
    operation: Option<Operation>,
    header: &RequestHeader,
    (offset, count): (u64, u64),
) -> bool {
    let length = header.length.get();
    let overlaps =
        |begin: u64| begin < offset.saturating_add(count) && offset < begin.saturating_add(length);
    let ranges = operation.map(|operation| operation.shape().ranges(header));
    ranges.into_iter().flatten().flatten().any(overlaps)
}

impl FromStr for FaultSpec {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let mut parts = text.split(',');
        let (kind, value) = key_and_value(parts.next().unwrap_or_default());
        let mut spec = Self {
            action: parse_action(kind, value)?,
            operations: None,
            queue: None,
            range: None,
            after: 0,
            every: 1,
            probability: 1.0,
            count: u64::MAX,
            seed: 0,
        };
        let mut seen = Vec::new();
        for part in parts {
            let (key, value) = key_and_value(part);
            if seen.contains(&key) {
                return Err(FaultError::Twice(key.to_owned()));
            }
            seen.push(key);
            let value = || value.ok_or_else(|| FaultError::NeedsValue(key.to_owned()));
            match key {
                "op" => spec.operations = Some(parse_operations(value()?)?),
                "queue" => spec.queue = Some(parse_number(value()?, "queue")?),
                "range" => spec.range = Some(parse_range(value()?)?),
                "after" => spec.after = parse_number(value()?, "count")?,
                "every" => {
                    spec.every = Some(parse_number(value()?, "interval")?)
                        .filter(|&every| every > 0)
                        .ok_or_else(|| invalid("0", "interval", "write 1 or more"))?;
                }
                "probability" => spec.probability = parse_probability(value()?)?,
                "count" => spec.count = parse_number(value()?, "count")?,
                "seed" => spec.seed = parse_number(value()?, "seed")?,
                _ => return Err(FaultError::Selector(key.to_owned())),
            }
        }
        Ok(spec)
    }
}

fn key_and_value(part: &str) -> (&str, Option<&str>) {
    match part.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (part, None),
    }
}

fn invalid(value: &str, what: &'static str, remedy: &'static str) -> FaultError {
    FaultError::Value {
        value: value.to_owned(),
        what,
        remedy,
    }
}

fn parse_action(kind: &str, value: Option<&str>) -> Result<Action, FaultError> {
    let kind = FaultKind::ALL
        .into_iter()
        .find(|candidate| candidate.name() == kind)
        .ok_or_else(|| FaultError::Kind(kind.to_owned()))?;
    let plain = |action| match value {
        None => Ok(action),
        Some(_) => Err(FaultError::NoValue(kind.name())),
    };
    match kind {
        FaultKind::Delay => {
            let value = value.ok_or_else(|| FaultError::NeedsValue(kind.name().to_owned()))?;
            Ok(Action::Delay(parse_duration(value)?))
        }
        FaultKind::Fail => Ok(Action::Fail(
            value.map_or(Ok(Status::IO_ERROR), parse_status)?,
        )),
        FaultKind::Short => Ok(Action::Short(value.map(parse_size).transpose()?)),
        FaultKind::Flip => {
            let bits = value.map_or(Ok(1), |value| parse_number(value, "number of bits"))?;
            if bits == 0 || bits > 1 << 20 {
                let remedy = "write 1 to 1048576";
                return Err(invalid(value.unwrap_or_default(), "number of bits", remedy));
            }
            Ok(Action::Flip(bits))
        }
        FaultKind::Drop => plain(Action::Drop),
        FaultKind::Twice => plain(Action::Twice),
        FaultKind::WrongId => {
            let id = value.map(|value| parse_number(value, "descriptor id"));
            Ok(Action::WrongId(id.transpose()?))
        }
        FaultKind::WrongLength => {
            let length = value.map(|value| parse_number(value, "used length"));
            Ok(Action::WrongLength(length.transpose()?))
        }
        FaultKind::Swap => plain(Action::Swap),
        FaultKind::StopQueue => plain(Action::StopQueue),
        FaultKind::Vanish => plain(Action::Vanish),
    }
}

fn parse_number<N: FromStr>(text: &str, what: &'static str) -> Result<N, FaultError> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    Some(text)
        .filter(|_| digits)
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| invalid(text, what, "write a decimal number that is not too large"))
}

fn parse_duration(text: &str) -> Result<Duration, FaultError> {
    let remedy = "write a number and ns, us, ms or s, as in 5ms, up to one hour";
    let at = text.find(|c: char| !c.is_ascii_digit());
    let (digits, unit) = text.split_at(at.unwrap_or(text.len()));
    let number: u64 = parse_number(digits, "time")?;
    let scale = match unit {
        "ns" => 1,
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        _ => return Err(invalid(text, "time", remedy)),
    };
    number
        .checked_mul(scale)
        .map(Duration::from_nanos)
        .filter(|&time| time <= Duration::from_secs(3600))
        .ok_or_else(|| invalid(text, "time", remedy))
}

fn parse_status(text: &str) -> Result<Status, FaultError> {
    Ok(match text {
        "unsupported" => Status::UNSUPPORTED,
        "bad-flags" => Status::BAD_FLAGS,
        "bad-range" => Status::BAD_RANGE,
        "bad-length" => Status::BAD_LENGTH,
        "bad-address" => Status::BAD_ADDRESS,
        "io-error" => Status::IO_ERROR,
        "bad-request" => Status::BAD_REQUEST,
        _ => Status(parse_number(text, "status")?),
    })
}

fn parse_operations(text: &str) -> Result<u64, FaultError> {
    text.split('+').try_fold(0, |mask, name| {
        Operation::ALL
            .iter()
            .find(|operation| operation.name() == name)
            .map(|operation| mask | operation.bit())
            .ok_or_else(|| invalid(name, "operation", "see --help for their names"))
    })
}

fn parse_range(text: &str) -> Result<(u64, u64), FaultError> {
    let (offset, length) = text
        .split_once('+')
        .ok_or_else(|| invalid(text, "range", "write OFFSET+LENGTH, as in 1M+4K"))?;
    Ok((parse_size(offset)?, parse_size(length)?))
}

fn parse_probability(text: &str) -> Result<f64, FaultError> {
    text.parse()
        .ok()
        .filter(|probability| (0.0..=1.0).contains(probability))
        .ok_or_else(|| invalid(text, "probability", "write a number from 0 to 1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<FaultSpec, FaultError> {
        text.parse()
    }

    #[test]
    fn every_kind_parses_without_selectors() {
        for (text, action) in [
            ("delay=5ms", Action::Delay(Duration::from_millis(5))),
            ("delay=0ns", Action::Delay(Duration::ZERO)),
            ("fail", Action::Fail(Status::IO_ERROR)),
            ("fail=bad-range", Action::Fail(Status::BAD_RANGE)),
            ("fail=4711", Action::Fail(Status(4711))),
            ("short", Action::Short(None)),
            ("short=4K", Action::Short(Some(4096))),
            ("flip", Action::Flip(1)),
            ("flip=8", Action::Flip(8)),
            ("drop", Action::Drop),
            ("twice", Action::Twice),
            ("wrong-id", Action::WrongId(None)),
            ("wrong-id=65536", Action::WrongId(Some(65_536))),
            ("wrong-length", Action::WrongLength(None)),
            ("wrong-length=0", Action::WrongLength(Some(0))),
            ("swap", Action::Swap),
            ("stop-queue", Action::StopQueue),
            ("vanish", Action::Vanish),
        ] {
            let spec = parse(text).unwrap();
            assert_eq!(spec.action(), action, "{text}");
            assert!(text.starts_with(action.kind().name()));
        }
    }

    #[test]
    fn selectors_are_parsed() {
        let text = "drop,op=read+write,queue=3,range=1M+4K,after=5,every=7,probability=0.25,count=9,seed=11";
        let spec = parse(text).unwrap();
        assert_eq!(
            spec.operations,
            Some(Operation::Read.bit() | Operation::Write.bit())
        );
        assert_eq!((spec.queue, spec.range), (Some(3), Some((1 << 20, 4096))));
        assert_eq!((spec.after, spec.every, spec.count), (5, 7, 9));
        assert_eq!((spec.probability, spec.seed), (0.25, 11));
        assert!(spec.on_queue(3) && !spec.on_queue(0));
    }

    #[test]
    fn invalid_specs_are_rejected_by_name() {
        for text in [
            "",
            "=",
            ",",
            "explode",
            "drop=1",
            "twice=",
            "delay",
            "delay=5",
            "delay=ms",
            "delay=5min",
            "delay=2h",
            "delay=99999999999999999999s",
            "delay=3601s",
            "fail=",
            "fail=nothing",
            "fail=65536",
            "short=x",
            "flip=0",
            "flip=9999999999",
            "drop,",
            "drop,op",
            "drop,op=",
            "drop,op=eat",
            "drop,op=read+",
            "drop,queue=-1",
            "drop,queue=65536",
            "drop,range=5",
            "drop,range=+",
            "drop,every=0",
            "drop,probability=2",
            "drop,probability=nan",
            "drop,probability=-0.1",
            "drop,count=1,count=2",
            "drop,color=red",
            "drop,seed=0x1",
            "wrong-id=4294967296",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(
            parse("drop,color=red"),
            Err(FaultError::Selector("color".into()))
        );
        assert_eq!(parse("explode"), Err(FaultError::Kind("explode".into())));
    }

    #[test]
    fn a_range_selects_overlapping_requests() {
        let spec = parse("drop,range=100+10").unwrap();
        let request = |operation, offset, length, argument| {
            RequestHeader::new(operation, offset, length, argument)
        };
        assert!(spec.selects(&request(Operation::Read, 109, 1, 0)));
        assert!(spec.selects(&request(Operation::Write, 0, 101, 0)));
        assert!(!spec.selects(&request(Operation::Read, 110, 50, 0)));
        assert!(!spec.selects(&request(Operation::Write, 0, 100, 0)));
        assert!(spec.selects(&request(Operation::Move, 0, 5, 105)));
        assert!(!spec.selects(&request(Operation::Copy, 105, 5, 0)));
        assert!(!spec.selects(&request(Operation::Read, u64::MAX, u64::MAX, 0)));
    }
}
