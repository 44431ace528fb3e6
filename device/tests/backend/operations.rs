//! Every operation over the socket, compared with the same operation on an array. The engine's
//! tests cover all kinds of segments; this covers the path from the ring to the engine and back.

use vdma_protocol::{Operation, Response, Status};

use crate::support::{Backend, DATA, FrontEnd, Request};

const SIZE: usize = 1 << 16;
/// Guest address of incoming data.
const RESULT: u64 = DATA + 0x10_0000;

fn pattern(length: usize) -> Vec<u8> {
    (0..length as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

/// A device, and the expected contents of its memory.
struct Bench {
    front: FrontEnd,
    device: Vec<u8>,
    _backend: Backend,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("memory");
        std::fs::write(&file, pattern(SIZE)).unwrap();
        let argument = format!("--memory-file={}", file.display());
        let backend = Backend::start_in(directory, &[&argument]);
        Self {
            front: FrontEnd::connect(&backend.socket()),
            device: pattern(SIZE),
            _backend: backend,
        }
    }

    /// Executes `request`; checks its status, its lengths, and all of device memory.
    fn run(&mut self, request: &Request, value: u64) {
        let (response, written) = self.front.call(0, request);
        let length = u32::try_from(request.header.length.get()).unwrap();
        let operation = Operation::from_code(request.header.operation.get());
        assert_eq!(
            response,
            Response::new(Status::OK, length, value),
            "{operation:?}"
        );
        let incoming: u32 = request.incoming.iter().map(|(_, length)| length).sum();
        assert_eq!(written, 16 + incoming, "{operation:?}");
        let read = Request::new(Operation::Read, 0, SIZE as u64, 0)
            .incoming(DATA + 0x20_0000, SIZE as u32);
        assert_eq!(self.front.call(0, &read).0.status(), Status::OK);
        let found = self.front.guest.bytes(DATA + 0x20_0000, SIZE);
        assert!(found == self.device, "{operation:?}");
    }

    fn result(&self, length: usize) -> Vec<u8> {
        self.front.guest.bytes(RESULT, length)
    }
}

fn crc(bytes: &[u8]) -> u64 {
    // Bit by bit, as the specification defines it.
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    };
    u64::from(!bytes.iter().fold(u32::MAX, step))
}

#[test]
fn every_operation_matches_an_array() {
    let mut bench = Bench::new();
    let ours: Vec<u8> = pattern(5000).iter().map(|byte| !byte).collect();
    bench.front.guest.write(DATA, &ours);
    for operation in Operation::ALL {
        let request = |offset, argument| Request::new(operation, offset, 5000, argument);
        let before = bench.device.clone();
        let at = |offset: usize| offset..offset + 5000;
        match operation {
            Operation::Nop | Operation::Flush => bench.run(&request(7, 7), 0),
            Operation::Read => {
                bench.run(&request(101, 0).incoming(RESULT, 5000), 0);
                assert!(bench.result(5000) == before[at(101)]);
            }
            Operation::ReadCrc32c => {
                let value = crc(&before[at(102)]);
                bench.run(&request(102, 0).incoming(RESULT, 5000), value);
                assert!(bench.result(5000) == before[at(102)]);
            }
            Operation::Write => {
                bench.device[at(10_000)].copy_from_slice(&ours);
                bench.run(&request(10_000, 0).outgoing(DATA, 5000), 0);
            }
            Operation::WriteCrc32c => {
                bench.device[at(20_003)].copy_from_slice(&ours);
                bench.run(&request(20_003, 0).outgoing(DATA, 5000), crc(&ours));
            }
            Operation::Copy => {
                let copy = request(0, 0).outgoing(DATA, 5000).incoming(RESULT, 5000);
                bench.run(&copy, 0);
                assert!(bench.result(5000) == ours);
            }
            Operation::Move => {
                bench.device.copy_within(at(1000), 3000);
                bench.run(&request(3000, 1000), 0);
            }
            Operation::Fill => {
                let fill = 0x0807_0605_0403_0201u64.to_le_bytes();
                for (index, byte) in bench.device[at(30_001)].iter_mut().enumerate() {
                    *byte = fill[index % 8];
                }
                bench.run(&request(30_001, u64::from_le_bytes(fill)), 0);
            }
            Operation::FillGuest => {
                bench.run(&request(0, 0x2222_2222_1111_1111).incoming(RESULT, 5000), 0);
                let expected = [[0x11u8; 4], [0x22; 4]].concat().repeat(5000 / 8);
                assert!(bench.result(5000) == expected);
            }
            Operation::Compare => {
                bench.front.guest.write(RESULT, &before[at(40_000)]);
                bench.run(&request(40_000, 0).outgoing(RESULT, 5000), 5000);
                bench.front.guest.write(RESULT + 4321, &[!before[44_321]]);
                bench.run(&request(40_000, 0).outgoing(RESULT, 5000), 4321);
            }
            Operation::Crc32c => bench.run(&request(50_000, 0), crc(&before[at(50_000)])),
            Operation::Crc32cGuest => {
                bench.run(&request(0, 0).outgoing(DATA, 5000), crc(&ours));
                // The check value, in two steps.
                bench.front.guest.write(RESULT, b"123456789");
                let begin = Request::new(operation, 0, 4, 0).outgoing(RESULT, 4);
                let first = bench.front.call(0, &begin).0.value.get();
                let rest = Request::new(operation, 0, 5, first).outgoing(RESULT + 4, 5);
                bench.run(&rest, 0xe306_9283);
            }
            Operation::Discard => {
                bench.device[at(33_333)].fill(0);
                bench.run(&request(33_333, 0), 0);
            }
        }
    }
}

#[test]
fn every_operation_of_length_zero() {
    let mut bench = Bench::new();
    for operation in Operation::ALL {
        for offset in [0, 1, SIZE as u64] {
            // A comparison of no bytes finds no difference.
            bench.run(&Request::new(operation, offset, 0, 0), 0);
        }
    }
}
