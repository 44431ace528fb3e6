//! A driver that writes arbitrary, mostly nearly valid data into a ring, descriptors and headers.
#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vdma_protocol::{Operation, RequestHeader};
use vhost_device_dma::{
    engine::Engine,
    memory::{Backing, DeviceMemory},
    processor::{Pass, PassThrough, Processor, QueueHost},
    virtqueue::GuestView,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const SIZE: u16 = 16;
const DESCRIPTORS: u64 = 0x0;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const TABLES: u64 = 0x3000;
const DATA: u64 = 0x4000;
/// Two regions of 64 KiB with a gap of the same size in between, then one that maps device memory.
const REGION: u64 = 0x1_0000;
const DEVICE: u64 = 0x1_0000;
const BAR: u64 = 0x10_0000;

#[derive(Arbitrary, Debug)]
enum Address {
    Data(u16),
    SecondRegion(u16),
    Bar(u16),
    Tables(u8),
    Anything(u64),
}

#[derive(Arbitrary, Debug)]
enum Length {
    Short(u8),
    Medium(u16),
    Descriptors(u8),
    Anything(u32),
}

#[derive(Arbitrary, Debug)]
struct Descriptor {
    address: Address,
    length: Length,
    flags: u8,
    next: u8,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Descriptor(u8, Descriptor),
    TableEntry(u8, Descriptor),
    Header {
        at: u16,
        operation: u8,
        offset: u16,
        length: u16,
        argument: u64,
    },
    Bytes(Address, Vec<u8>),
    Available(u8),
    AvailableIndex(u16),
    UsedEvent(u16),
    Pass,
}

#[derive(Arbitrary, Debug)]
struct Input {
    event_index: bool,
    steps: Vec<Step>,
}

/// A host that notifies no one and never polls.
struct SilentHost;

impl QueueHost for SilentHost {
    fn call(&mut self) {}
}

fn address(address: &Address) -> u64 {
    match address {
        Address::Data(at) => DATA + u64::from(*at),
        Address::SecondRegion(at) => 2 * REGION + u64::from(*at),
        Address::Bar(at) => BAR + u64::from(*at),
        Address::Tables(at) => TABLES + 16 * u64::from(*at),
        Address::Anything(at) => *at,
    }
}

fn write_descriptor(memory: &GuestMemoryMmap, at: u64, descriptor: &Descriptor) {
    let length = match descriptor.length {
        Length::Short(length) => length.into(),
        Length::Medium(length) => length.into(),
        Length::Descriptors(count) => 16 * u32::from(count),
        Length::Anything(length) => length,
    };
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address(&descriptor.address).to_le_bytes());
    bytes[8..12].copy_from_slice(&length.to_le_bytes());
    bytes[12] = descriptor.flags & 7;
    bytes[14] = descriptor.next & 31;
    let _ = memory.write_slice(&bytes, GuestAddress(at));
}

fuzz_target!(|input: Input| {
    use vm_memory::FileOffset;
    let device = Arc::new(DeviceMemory::open(Backing::Memfd, Some(DEVICE)).unwrap());
    let bar = FileOffset::new(device.file().try_clone().unwrap(), 0);
    let memory = GuestMemoryMmap::<()>::from_ranges_with_files([
        (GuestAddress(0), REGION as usize, None),
        (GuestAddress(2 * REGION), REGION as usize, None),
        (GuestAddress(BAR), DEVICE as usize, Some(bar)),
    ])
    .unwrap();
    let view = GuestView::new(&memory, &device);
    let mut queue = Queue::new(SIZE).unwrap();
    queue.set_size(SIZE);
    queue
        .try_set_desc_table_address(GuestAddress(DESCRIPTORS))
        .unwrap();
    queue
        .try_set_avail_ring_address(GuestAddress(AVAILABLE))
        .unwrap();
    queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
    queue.set_event_idx(input.event_index);
    queue.set_ready(true);
    let mut processor = Processor::new(Engine::new(device), Arc::default(), PassThrough);
    let mut available = 0u16;
    let store = |at: u64, value: u16| {
        let _ = memory.write_slice(&value.to_le_bytes(), GuestAddress(at));
    };
    for step in &input.steps {
        match step {
            Step::Descriptor(index, descriptor) => {
                let at = DESCRIPTORS + 16 * u64::from(index % SIZE as u8);
                write_descriptor(&memory, at, descriptor);
            }
            Step::TableEntry(index, descriptor) => {
                write_descriptor(&memory, TABLES + 16 * u64::from(*index), descriptor);
            }
            Step::Header {
                at,
                operation,
                offset,
                length,
                argument,
            } => {
                let operation = Operation::ALL[usize::from(*operation) % Operation::ALL.len()];
                let header =
                    RequestHeader::new(operation, (*offset).into(), (*length).into(), *argument);
                let _ = memory.write_slice(&header.to_bytes(), GuestAddress(DATA + u64::from(*at)));
            }
            Step::Bytes(at, bytes) => {
                let _ = memory.write_slice(bytes, GuestAddress(address(at)));
            }
            Step::Available(head) => {
                store(
                    AVAILABLE + 4 + 2 * u64::from(available % SIZE),
                    (*head % 20).into(),
                );
                available = available.wrapping_add(1);
                store(AVAILABLE + 2, available);
            }
            Step::AvailableIndex(index) => store(AVAILABLE + 2, *index),
            Step::UsedEvent(event) => store(AVAILABLE + 4 + 2 * u64::from(SIZE), *event),
            Step::Pass => {
                let before = (queue.next_avail(), queue.next_used());
                let result = processor.pass(&mut queue, &view, &mut SilentHost);
                // One used entry for each chain taken, and no more than were available.
                let taken = queue.next_avail().wrapping_sub(before.0);
                assert_eq!(taken, queue.next_used().wrapping_sub(before.1));
                match result {
                    Ok(Pass::AwaitKick | Pass::Continue) => {}
                    Ok(Pass::Yielded) => unreachable!("the host never yields"),
                    Ok(Pass::HeldUntil(_)) => unreachable!("there are no faults"),
                    Err(_) => return,
                }
            }
        }
    }
});
