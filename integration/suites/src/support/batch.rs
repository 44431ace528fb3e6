//! Many requests of one length, each for its own piece of a buffer.

use std::ops::Range;

use anyhow::Result;
use vdma::Device;

use super::{
    aio::{Iocb, Opcode},
    region::Region,
    uring::{self, Request},
};

/// Requests for consecutive pieces of a buffer. The `user_data` of each is its index.
#[derive(Clone, Copy)]
pub(crate) struct Batch {
    /// Number of requests.
    pub(crate) count: usize,
    /// Bytes of each.
    pub(crate) length: usize,
    /// Where the first begins in device memory.
    pub(crate) offset: u64,
    /// From one request to the next in device memory.
    stride: usize,
}

impl Batch {
    /// Requests that are consecutive in device memory as well.
    pub(crate) const fn consecutive(count: usize, length: usize, offset: u64) -> Self {
        Self {
            count,
            length,
            offset,
            stride: length,
        }
    }

    /// Requests for the same bytes of device memory.
    pub(crate) const fn at_one_offset(count: usize, length: usize, offset: u64) -> Self {
        Self {
            count,
            length,
            offset,
            stride: 0,
        }
    }

    /// Bytes of the buffer.
    pub(crate) const fn total(&self) -> usize {
        self.count * self.length
    }

    /// io_uring reads into the pieces of `region`.
    pub(crate) fn reads(&self, device: &Device, region: &Region) -> Vec<Request> {
        self.requests(|range, offset| uring::read(device.file(), region, range, offset))
    }

    /// io_uring writes from the pieces of `region`.
    pub(crate) fn writes(&self, device: &Device, region: &Region) -> Vec<Request> {
        self.requests(|range, offset| uring::write(device.file(), region, range, offset))
    }

    /// A request for each piece from its range of the buffer and its offset in device memory.
    pub(crate) fn requests(&self, build: impl Fn(Range<usize>, u64) -> Request) -> Vec<Request> {
        let build = |(index, (range, offset))| build(range, offset).user_data(index);
        (0..).zip(self.pieces()).map(build).collect()
    }

    /// libaio requests for the pieces of `region`.
    pub(crate) fn iocbs(
        &self,
        opcode: Opcode,
        device: &Device,
        region: &Region,
    ) -> Result<Vec<Iocb>> {
        (0..)
            .zip(self.pieces())
            .map(|(index, (range, offset))| {
                Iocb::transfer(opcode, device.file(), region, range, offset, index)
            })
            .collect()
    }

    /// Each piece's range of the buffer and offset in device memory.
    fn pieces(&self) -> impl Iterator<Item = (Range<usize>, u64)> {
        let Self {
            count,
            length,
            offset,
            stride,
        } = *self;
        (0..count).map(move |index| {
            let start = index * length;
            (start..start + length, offset + (index * stride) as u64)
        })
    }
}
