//! throwaway
#![allow(
    missing_docs,
    clippy::all,
    clippy::unwrap_used,
    clippy::cast_possible_truncation
)]
use std::sync::Arc;
use std::time::Instant;
use vdma_protocol::{Operation, RequestHeader};
use vhost_device_dma::{
    engine::Engine,
    memory::{Backing, DeviceMemory},
    queue::{GuestView, Processor, Surroundings},
};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryMmap};
struct S;
impl Surroundings for S {
    fn call(&mut self) {}
}
fn main() {
    let dev = Arc::new(DeviceMemory::open(Backing::Memfd, Some(256 << 20)).unwrap());
    let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 512 << 20)]).unwrap();
    for at in (0..512u64 << 20).step_by(4096) {
        mem.write_obj(1u8, GuestAddress(at)).unwrap();
    }
    for at in (0..256u64 << 20).step_by(4096) {
        dev.slice(at, 1).unwrap().write_obj(1u8, 0).unwrap();
    }
    let view = GuestView::new(&mem, &dev);
    for (len, seg, n) in if let Some(n) = std::env::args().nth(1) {
        match n.as_str() { "64k" => vec![(65536u32, 65536u32, 8usize)], "1m4k" => vec![(1 << 20, 4096, 4)], _ => vec![(0u32, 1u32, 32usize)] }
    } else {
        vec![
            (0u32, 1u32, 32usize),
            (4096, 4096, 32),
            (65536, 65536, 8),
            (65536, 4096, 8),
            (1 << 20, 1 << 20, 4),
            (1 << 20, 4096, 4),
            (16 << 20, 16 << 20, 1),
        ]
    } {
        let mut q = Queue::new(256).unwrap();
        q.try_set_desc_table_address(GuestAddress(0)).unwrap();
        q.try_set_avail_ring_address(GuestAddress(0x4000)).unwrap();
        q.try_set_used_ring_address(GuestAddress(0x8000)).unwrap();
        q.set_event_idx(true);
        q.set_ready(true);
        mem.write_obj(0u16, GuestAddress(0x8002)).unwrap();
        let mut p = Processor::new(Engine::new(dev.clone()), Arc::default(), None);
        let stride = if seg < len { 2 } else { 1 };
        let mut copies = vec![];
        for s in 0..n as u64 {
            let table = 0x10000 + s * 0x4000;
            let off = s * len as u64;
            let h = RequestHeader::new(
                if len == 0 {
                    Operation::Nop
                } else {
                    Operation::Read
                },
                off,
                len.into(),
                0,
            );
            mem.write_slice(&h.to_bytes(), GuestAddress(0x200_0000 + s * 64))
                .unwrap();
            let mut d: Vec<(u64, u32, u16)> =
                vec![(0x200_0000 + s * 64, 32, 1), (0x210_0000 + s * 64, 16, 3)];
            let base = (64u64 << 20) + s * len as u64 * stride;
            for i in 0..(len / seg) as u64 {
                d.push((base + i * seg as u64 * stride, seg, 3));
                copies.push((off + i * seg as u64, base + i * seg as u64 * stride, seg));
            }
            let c = d.len();
            for (i, (a, l, f)) in d.into_iter().enumerate() {
                let f = if i + 1 == c { f & !1 } else { f };
                let at = table + 16 * i as u64;
                mem.write_obj(a, GuestAddress(at)).unwrap();
                mem.write_obj(l, GuestAddress(at + 8)).unwrap();
                mem.write_obj(f, GuestAddress(at + 12)).unwrap();
                mem.write_obj(i as u16 + 1, GuestAddress(at + 14)).unwrap();
            }
            let at = 16 * s;
            mem.write_obj(table, GuestAddress(at)).unwrap();
            mem.write_obj(16 * c as u32, GuestAddress(at + 8)).unwrap();
            mem.write_obj(4u16, GuestAddress(at + 12)).unwrap();
        }
        let (mut best, mut bestm) = (f64::MAX, f64::MAX);
        let mut avail = 0u16;
        for _ in 0..(if len >= 1 << 20 {
            400
        } else if len == 0 {
            200000
        } else {
            20000
        }) {
            for s in 0..n as u16 {
                mem.write_obj(s, GuestAddress(0x4004 + 2 * ((avail % 256) as u64)))
                    .unwrap();
                avail = avail.wrapping_add(1);
            }
            mem.write_obj(avail, GuestAddress(0x4002)).unwrap();
            let t = Instant::now();
            while q.next_avail() != avail {
                p.pass(&mut q, &view, &mut S).unwrap();
            }
            best = best.min(t.elapsed().as_nanos() as f64);
            let t = Instant::now();
            for &(o, a, l) in &copies {
                let src = dev.slice(o, l.into()).unwrap();
                let dst = mem.get_slice(GuestAddress(a), l as usize).unwrap();
                src.copy_to_volatile_slice(dst);
            }
            bestm = bestm.min(t.elapsed().as_nanos() as f64);
        }
        println!(
            "{len}/{seg} x{n}: device {:.0} ns, memcpy {:.0} ns, ratio {:.3}, per request {:.1} ns",
            best,
            bestm,
            bestm / best,
            best / n as f64
        );
    }
}
