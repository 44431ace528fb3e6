// SPDX-License-Identifier: GPL-2.0

//! Asynchronous writes that are durable when they complete: a FLUSH comes between the completion of
//! the write and that of its `kiocb`.
//!
//! A FLUSH covers what has completed before it is submitted, so it is submitted when the last
//! request of the write has completed. That happens in interrupt context, which cannot wait for
//! free descriptors; therefore a work item submits it. What it needs is allocated before the write
//! is submitted, while failing does no harm.

use kernel::{prelude::*, sync::Arc};

use crate::{
    io::{
        queue::{Queue, WhenFull},
        request::{Request, RequestTarget},
        transfer::{AfterWrite, TransferTarget, Written},
    },
    linux::{chardev::AsyncKiocb, slab::SlabBox},
    observe::Observer,
    protocol::{Operation, RequestHeader},
};

/// The FLUSH that covers a write.
struct CoveringFlush {
    queue: Arc<Queue>,
    observer: Arc<Observer>,
    /// Until it is submitted.
    request: Option<SlabBox<Request>>,
}

impl AfterWrite for CoveringFlush {
    fn run(&mut self, kiocb: AsyncKiocb, bytes: usize) {
        let Some(mut request) = self.request.take() else {
            return;
        };
        request.set_target(RequestTarget::Written(kiocb, bytes));
        if let Err((error, mut request)) = self.queue.submit(request, WhenFull::Wait, true) {
            let kiocb = request.take_target().into_kiocb();
            drop(request);
            if let Some(kiocb) = kiocb {
                kiocb.complete(Err(error));
            }
            self.observer.ended();
        }
    }
}

/// Completes `kiocb` once a FLUSH on `queue` has covered the write. On failure `kiocb` remains the
/// caller's. May sleep.
pub(super) fn flush_before(
    queue: &Arc<Queue>,
    observer: &Arc<Observer>,
    kiocb: AsyncKiocb,
) -> Result<TransferTarget, (Error, AsyncKiocb)> {
    match covering_flush(queue, observer) {
        Ok(written) => Ok(TransferTarget::after_write(written, kiocb)),
        Err(error) => Err((error, kiocb)),
    }
}

fn covering_flush(queue: &Arc<Queue>, observer: &Arc<Observer>) -> Result<KBox<Written>> {
    let target = RequestTarget::None;
    let mut request = SlabBox::<Request>::create(target, observer.clone(), false, false)?;
    request.prepare(RequestHeader::new(Operation::Flush, 0, 0, 0));
    let flush = CoveringFlush {
        queue: queue.clone(),
        observer: observer.clone(),
        request: Some(request),
    };
    Written::new(KBox::new(flush, GFP_KERNEL)?)
}
