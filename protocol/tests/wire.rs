//! Requests, responses and the configuration as bytes.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use vdma_protocol::{
    CONFIG_MAGIC, CONFIG_VERSION, Config, Le16, Le32, Le64, Operation, RequestHeader, Response,
    Status,
};

/// CRC32C bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 != 0 {
                crc >> 1 ^ 0x82f6_3b78
            } else {
                crc >> 1
            };
        }
    }
    !crc
}

proptest! {
    #[test]
    fn checksums_of_parts_make_that_of_the_whole(
        parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..6),
    ) {
        let whole = parts.concat();
        let mut begin = 0;
        let mut crc = 0;
        for part in &parts {
            begin += part.len();
            crc ^= vdma_protocol::crc32c::shift(crc32c(part), (whole.len() - begin) as u64);
        }
        prop_assert_eq!(crc, crc32c(&whole));
    }

    #[test]
    fn any_bytes_are_a_header_and_come_back(bytes in any::<[u8; RequestHeader::SIZE]>()) {
        let header = RequestHeader::from_bytes(&bytes);
        prop_assert_eq!(header.to_bytes(), bytes);
        prop_assert_eq!(header.length.get(), u64::from_le_bytes(bytes[16..24].try_into().unwrap()));
    }

    #[test]
    fn any_bytes_are_a_response_and_come_back(bytes in any::<[u8; Response::SIZE]>()) {
        let response = Response::from_bytes(&bytes);
        prop_assert_eq!(response.to_bytes(), bytes);
        prop_assert_eq!(response.status().0, u16::from_le_bytes([bytes[0], bytes[1]]));
    }

    #[test]
    fn integers_are_little_endian(a: u16, b: u32, c: u64) {
        prop_assert_eq!((Le16::from(a).get(), Le32::from(b).get(), Le64::from(c).get()), (a, b, c));
        prop_assert_eq!(format!("{:?} {:?} {:?}", Le16::new(a), Le32::new(b), Le64::new(c)), format!("{a} {b} {c}"));
        let header = RequestHeader::new(Operation::Write, c, u64::from(b), u64::from(a));
        let bytes = header.to_bytes();
        prop_assert_eq!(&bytes[8..16], &c.to_le_bytes());
        prop_assert_eq!(&bytes[24..26], &a.to_le_bytes());
    }
}

#[test]
fn crc32c_of_the_test_vector() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    assert_eq!(vdma_protocol::crc32c::shift(0xe306_9283, 0), 0xe306_9283);
    // The checksum of a gibibyte of zeroes after it, by two halves.
    let half = vdma_protocol::crc32c::shift(0xe306_9283, 1 << 29);
    assert_eq!(
        vdma_protocol::crc32c::shift(half, 1 << 29),
        vdma_protocol::crc32c::shift(0xe306_9283, 1 << 30)
    );
}

#[test]
fn codes_names_and_bits_of_operations_are_distinct() {
    for (code, operation) in (0..).zip(Operation::ALL) {
        assert_eq!(operation.code(), code);
        assert_eq!(Operation::from_code(code), Some(operation));
        assert_eq!(operation.bit(), 1 << code);
        let same = |other: &&Operation| other.name() == operation.name();
        assert_eq!(Operation::ALL.iter().filter(same).count(), 1);
    }
    assert_eq!(Operation::from_code(14), None);
    assert_eq!(Operation::from_code(u16::MAX), None);
}

#[test]
fn every_status_is_described() {
    for code in 0..=7 {
        assert_ne!(Status(code).describe(), Status(8).describe(), "{code}");
    }
    assert_eq!(Status(8).describe(), "unknown status");
    assert_ne!(Status::UNWRITTEN.describe(), "unknown status");
}

#[test]
fn the_configuration_is_laid_out_as_specified() {
    let config = Config {
        magic: CONFIG_MAGIC.into(),
        version: CONFIG_VERSION.into(),
        memory_size: 0x1122_3344_5566_7788.into(),
        operations: 0x3fff.into(),
        num_queues: 16.into(),
        reserved0: 0.into(),
        max_segments: 1024.into(),
        max_transfer: (1 << 30).into(),
        state: 5.into(),
        reserved1: [0; 24],
    };
    let bytes = config.to_bytes();
    assert_eq!(&bytes[..8], b"vdma\x01\0\0\0");
    assert_eq!(
        bytes[8..16],
        [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]
    );
    assert_eq!(bytes[16..28], [0xff, 0x3f, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0]);
    assert_eq!(bytes[28..40], [0, 4, 0, 0, 0, 0, 0, 0x40, 5, 0, 0, 0]);
    assert_eq!(bytes[40..], [0; 24]);
}
