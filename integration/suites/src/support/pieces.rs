//! Requests for the pieces of one buffer, and what has to become of them.

use std::collections::HashSet;

use anyhow::{Result, ensure};
use io_uring::{opcode, squeue::Entry};
use vdma::Device;

use super::{
    aio::{Iocb, Opcode},
    region::Region,
    uring::{Completion, fd},
};

/// Pieces of one buffer and of device memory: the same offsets, but for where device memory begins.
#[derive(Clone, Copy)]
pub(crate) struct Pieces {
    pub(crate) count: usize,
    pub(crate) length: usize,
    pub(crate) position: u64,
}

impl Pieces {
    pub(crate) fn total(&self) -> usize {
        self.count * self.length
    }

    pub(crate) fn iocbs(
        &self,
        opcode: Opcode,
        device: &Device,
        region: &Region,
    ) -> Result<Vec<Iocb>> {
        (0..self.count)
            .map(|index| {
                let start = index * self.length;
                let offset = self.position + start as u64;
                let data = index as u64;
                Iocb::transfer(
                    opcode,
                    device.file(),
                    region,
                    start,
                    self.length,
                    offset,
                    data,
                )
            })
            .collect()
    }

    pub(crate) fn reads(&self, device: &Device, region: &Region) -> Vec<Entry> {
        self.entries(|start, offset| {
            opcode::Read::new(fd(device.file()), region.at(start), self.length_u32())
                .offset(offset)
                .build()
        })
    }

    pub(crate) fn writes(&self, device: &Device, region: &Region) -> Vec<Entry> {
        self.entries(|start, offset| {
            opcode::Write::new(fd(device.file()), region.at(start), self.length_u32())
                .offset(offset)
                .build()
        })
    }

    /// An entry for each piece from its place in the buffer and in device memory.
    pub(crate) fn entries(&self, build: impl Fn(usize, u64) -> Entry) -> Vec<Entry> {
        (0..self.count)
            .map(|index| {
                let start = index * self.length;
                build(start, self.position + start as u64).user_data(index as u64)
            })
            .collect()
    }

    pub(crate) fn length_u32(&self) -> u32 {
        u32::try_from(self.length).unwrap_or(u32::MAX)
    }

    /// Fails unless each piece completed once, and as a whole.
    pub(crate) fn check(&self, completions: impl IntoIterator<Item = (u64, i64)>) -> Result<()> {
        let mut seen = HashSet::new();
        for (index, result) in completions {
            ensure!(
                usize::try_from(result) == Ok(self.length),
                "request {index} ended with {result} instead of {} bytes",
                self.length
            );
            ensure!(seen.insert(index), "request {index} completed twice");
        }
        ensure!(
            seen.len() == self.count,
            "{} of {} requests completed",
            seen.len(),
            self.count
        );
        Ok(())
    }

    pub(crate) fn check_uring(&self, completions: &[Completion]) -> Result<()> {
        self.check(
            completions
                .iter()
                .map(|completion| (completion.user_data, completion.result.into())),
        )
    }
}
