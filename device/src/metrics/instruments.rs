//! Counters and histograms.

use std::sync::atomic::{AtomicU64, Ordering};

/// A count with one writer at a time.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`. Only one thread may do so at a time: the thread that runs the queue.
    pub fn add(&self, count: u64) {
        let value = self.0.load(Ordering::Relaxed);
        self.0.store(value.wrapping_add(count), Ordering::Relaxed);
    }

    /// The count.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Buckets of a [`Histogram`].
pub const BUCKETS: usize = 36;

/// Counts values by their magnitude: bucket *n* holds those from 2^(n-1) up to but excluding 2^n;
/// bucket 0 holds zeroes, the last one everything larger.
#[derive(Debug)]
pub struct Histogram {
    buckets: [Counter; BUCKETS],
    sum: Counter,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: std::array::from_fn(|_| Counter::default()),
            sum: Counter::default(),
        }
    }
}

impl Histogram {
    /// Counts `value`, `times` times.
    pub fn record(&self, value: u64, times: u64) {
        let bucket = (u64::BITS - value.leading_zeros()) as usize;
        self.buckets[bucket.min(BUCKETS - 1)].add(times);
        self.sum.add(value.wrapping_mul(times));
    }

    /// The sum of all values.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.sum.get()
    }

    /// The number of values in each bucket.
    #[must_use]
    pub fn counts(&self) -> [u64; BUCKETS] {
        std::array::from_fn(|bucket| self.buckets[bucket].get())
    }

    /// An upper bound for the value that the given share (0 to 1) of all values do not exceed; 0
    /// without any values.
    #[must_use]
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )] // A share of a count: rounding does not matter.
    pub fn quantile(&self, share: f64) -> u64 {
        let counts = self.counts();
        let total: u64 = counts.iter().sum();
        let wanted = ((total as f64) * share).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in counts.iter().enumerate() {
            seen += count;
            if seen >= wanted && seen > 0 {
                return (1u64 << bucket) - 1;
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_powers_of_two() {
        let histogram = Histogram::default();
        for value in [0, 1, 2, 3, 4, 1023, 1024] {
            histogram.record(value, 1);
        }
        histogram.record(u64::MAX, 2);
        let counts = histogram.counts();
        assert_eq!(counts[..4], [1, 1, 2, 1]);
        assert_eq!((counts[10], counts[11], counts[BUCKETS - 1]), (1, 1, 2));
    }

    #[test]
    fn quantiles_are_upper_bounds() {
        let histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), 0);
        histogram.record(100, 90);
        histogram.record(5000, 10);
        assert_eq!(histogram.quantile(0.5), 127);
        assert_eq!(histogram.quantile(0.99), 8191);
        assert_eq!(histogram.sum(), 59_000);
    }
}
