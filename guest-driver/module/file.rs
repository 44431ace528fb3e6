// SPDX-License-Identifier: GPL-2.0

//! An open file of `/dev/vdmaN`.

use crate::{
    chardev::{FileOperations, Io, Iocb, Opening},
    counters::{Counters, Direction},
    device::Vdma,
    ioctl,
    pages::Buffers,
    protocol::{
        Operation, Statistics, IOCTL_DEVICE_STATISTICS, IOCTL_FILE_STATISTICS, IOCTL_INFO,
    },
    queue::WhenFull,
    transfer::Transfer,
    vma::{NewMapping, SpaceGuard},
};
use kernel::{prelude::*, seq_file::SeqFile, seq_print, sync::Arc};

/// What an open file keeps.
pub(crate) struct OpenFile {
    device: Arc<Vdma>,
    counters: Arc<Counters>,
    _space: SpaceGuard,
}

impl OpenFile {
    /// Moves the caller's buffers to or from device memory.
    ///
    /// The pages are pinned and the requests submitted in the caller's context. An asynchronous call
    /// ends there, a plain one waits.
    fn transfer(&self, direction: Direction, iocb: Iocb<'_>, mut buffers: Buffers<'_>) -> Result<Io> {
        let position = iocb.position();
        let left = self.device.memory_size().saturating_sub(position);
        if buffers.len() == 0 {
            return Ok(Io::Done(0));
        }
        if left == 0 {
            return match direction {
                Direction::Write => Err(ENOSPC),
                _ => Ok(Io::Done(0)),
            };
        }
        buffers.truncate(usize::try_from(left).unwrap_or(usize::MAX));

        let when_full = if iocb.no_wait() { WhenFull::Fail } else { WhenFull::Wait };
        if when_full == WhenFull::Fail && !self.device.fits_one_request(&buffers) {
            // Split transfers may have to wait half-way; a caller that may not wait tries again from
            // where it may.
            return Err(EAGAIN);
        }
        // Pages that are not pinned stay with their owner only until the call ends, so a signal may
        // not end it before the device is done with them.
        let interruptible = buffers.will_pin();
        let asynchronous = iocb.asynchronous();
        let queued = asynchronous.is_some();
        let transfer = Transfer::new(
            asynchronous,
            Some(self.counters.clone()),
            self.device.counters().clone(),
        )?;
        let submitted = self.device.submit_all(&transfer, direction, position, &mut buffers, when_full);
        let length = match submitted {
            Ok(length) => length,
            Err(error) => {
                transfer.cancel();
                return Err(error);
            }
        };
        transfer.submitted(length);
        if queued {
            return Ok(Io::Queued);
        }
        let bytes =
            if interruptible { transfer.wait_interruptible()? } else { transfer.wait()? };
        Ok(Io::Done(bytes))
    }
}

impl FileOperations for OpenFile {
    type Device = Vdma;

    fn open(device: Arc<Vdma>, opening: &Opening) -> Result<Self> {
        // SAFETY: These are the arguments of `->open`.
        let space = unsafe { device.space().adopt(opening.inode, opening.file) };
        Ok(Self { device, counters: Arc::new(Counters::new(), GFP_KERNEL)?, _space: space })
    }

    fn read(&self, iocb: Iocb<'_>, buffers: Buffers<'_>) -> Result<Io> {
        self.transfer(Direction::Read, iocb, buffers)
    }

    fn write(&self, iocb: Iocb<'_>, buffers: Buffers<'_>) -> Result<Io> {
        self.transfer(Direction::Write, iocb, buffers)
    }

    fn size(&self) -> u64 {
        self.device.memory_size()
    }

    fn sync(&self) -> Result {
        self.device.run(Operation::Flush, 0, 0, 0, Some(self.counters.clone()))
    }

    fn map(&self, mapping: NewMapping<'_>) -> Result {
        self.device.map(mapping)
    }

    fn ioctl(&self, command: u32, argument: usize) -> Result<isize> {
        match command {
            IOCTL_INFO => ioctl::answer(self.device.info(), argument),
            IOCTL_FILE_STATISTICS => ioctl::answer(&self.counters.snapshot(), argument),
            IOCTL_DEVICE_STATISTICS => ioctl::answer(&self.device.counters().snapshot(), argument),
            _ => Err(ENOTTY),
        }
    }

    fn show(&self, out: &SeqFile) {
        let Statistics {
            submitted,
            completed,
            failed,
            bytes_read,
            bytes_written,
            pages_pinned,
            segments,
            in_flight,
            in_flight_max,
            queue_full,
        } = self.counters.snapshot();
        seq_print!(
            out,
            "vdma-submitted:\t{submitted}\n\
             vdma-completed:\t{completed}\n\
             vdma-failed:\t{failed}\n\
             vdma-bytes-read:\t{bytes_read}\n\
             vdma-bytes-written:\t{bytes_written}\n\
             vdma-pages-pinned:\t{pages_pinned}\n\
             vdma-segments:\t{segments}\n\
             vdma-in-flight:\t{in_flight}\n\
             vdma-in-flight-max:\t{in_flight_max}\n\
             vdma-queue-full:\t{queue_full}\n"
        );
    }
}
