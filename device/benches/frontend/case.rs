//! The rows of the table.

use vdma_protocol::{Operation, RequestHeader};

/// What one row measures.
pub struct Case {
    pub name: String,
    pub operation: Operation,
    pub length: u32,
    pub segment: u32,
    pub depth: u16,
    pub polled: bool,
}

pub const MIB: u64 = 1 << 20;
pub const DEVICE_BYTES: u64 = 256 * MIB;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |operation: Operation, length: u32, segment: u32, depth: u16, polled: bool| {
        let name = format!(
            "{} {}{} qd{depth} {}",
            operation.name(),
            size(length),
            if segment < length {
                format!("/{}", size(segment))
            } else {
                String::new()
            },
            if polled { "poll" } else { "wait" }
        );
        cases.push(Case {
            name,
            operation,
            length,
            segment,
            depth,
            polled,
        });
    };
    for depth in [1, 32, 128] {
        for polled in [true, false] {
            add(Operation::Nop, 0, 1, depth, polled);
        }
    }
    for depth in [1, 32, 128, 256] {
        for polled in [true, false] {
            add(Operation::Read, 4096, 4096, depth, polled);
        }
    }
    add(Operation::Write, 4096, 4096, 32, true);
    for (length, depth) in [(64 << 10, 8), (1 << 20, 4), (16 << 20, 1)] {
        for segment in [length, 4096] {
            if length / segment <= 1000 {
                add(Operation::Read, length, segment, depth, true);
                add(Operation::Write, length, segment, depth, true);
            }
        }
    }
    add(Operation::ReadCrc32c, 1 << 20, 1 << 20, 4, true);
    add(Operation::Fill, 1 << 20, 1 << 20, 4, true);
    cases
}

fn size(bytes: u32) -> String {
    vhost_device_dma::size::format_size(bytes.into())
}

/// A request header for slot-wise disjoint parts of device memory.
pub fn header(case: &Case, slot: u16) -> [u8; RequestHeader::SIZE] {
    let offset = u64::from(slot) * u64::from(case.length) % (DEVICE_BYTES / 2);
    RequestHeader::new(case.operation, offset, case.length.into(), 0).to_bytes()
}
