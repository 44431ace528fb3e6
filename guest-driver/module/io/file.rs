// SPDX-License-Identifier: GPL-2.0

//! An open file of `/dev/vdmaN`.

use kernel::{
    prelude::*,
    seq_file::SeqFile,
    seq_print,
    sync::{
        Arc,
        atomic::{Atomic, Relaxed},
    },
};

use crate::{
    io::{device::Vdma, queue::WhenFull, transfer::TransferTarget},
    linux::{
        anon_file::{NewFile, with_descriptor},
        capability,
        chardev::{self, FileOperations, IoResult, Kiocb, Mmap, Opening, Poll, Readiness},
        eventfd::EventFd,
        iov_iter::IovIter,
        uring_cmd::{UringResult, UringSubmission},
        vma::{Fault, FaultResult, Mappable, NewMapping},
    },
    observe::{Observer, counters::Direction, trace_file::TraceFile},
    operations::{
        buffer::{BufferFile, BufferTable, DmaBuffer},
        command::{CommandContext, Rights},
        ioctl,
    },
    protocol::{
        Allocation, IOCTL_ALLOCATE_BUFFER, IOCTL_CACHE_MODE, IOCTL_DEVICE_STATISTICS,
        IOCTL_EVENTFD, IOCTL_EXPLAIN, IOCTL_FILE_STATISTICS, IOCTL_IMPORT_BUFFER, IOCTL_INFO,
        IOCTL_MAP_MODE, IOCTL_REGISTER_BUFFER, IOCTL_RELEASE_BUFFER, IOCTL_RUN, IOCTL_RUN_BATCH,
        IOCTL_TRACE, MAP_EAGER, MAP_LAZY, NO_FILE, Registration, Statistics, Trace, URING_RUN,
    },
};

/// State of an open file.
pub(crate) struct OpenFile {
    device: Arc<Vdma>,
    observer: Arc<Observer>,
    buffers: Pin<KBox<BufferTable>>,
    /// How later mappings are filled: `MAP_*`.
    map_mode: Atomic<u32>,
    rights: Rights,
}

impl OpenFile {
    fn commands(&self) -> CommandContext<'_> {
        CommandContext {
            device: &self.device,
            observer: &self.observer,
            buffers: &self.buffers,
            rights: self.rights,
        }
    }

    /// Adds a buffer to those of the file.
    fn add_buffer(&self, buffer: Arc<DmaBuffer>) -> Result<u32> {
        let id = self.buffers.insert(buffer)?;
        self.observer.count(|counters| counters.buffers.add(1));
        Ok(id)
    }

    fn remove_buffer(&self, id: u32) -> Result {
        drop(self.buffers.remove(id)?);
        self.observer.count(|counters| counters.buffers.subtract(1));
        Ok(())
    }

    fn register_buffer(&self, address: usize) -> Result<isize> {
        let mut registration: Registration = ioctl::copy_from_user(address)?;
        if registration.reserved != 0 {
            return Err(EINVAL);
        }
        let buffer = DmaBuffer::register(registration.address, registration.length)?;
        registration.id = self.add_buffer(buffer)?;
        ioctl::copy_to_user(&registration, address).inspect_err(|_| {
            let _ = self.remove_buffer(registration.id);
        })
    }

    fn allocate_buffer(&self, address: usize) -> Result<isize> {
        let mut allocation: Allocation = ioctl::copy_from_user(address)?;
        if allocation.reserved != 0 {
            return Err(EINVAL);
        }
        let buffer = DmaBuffer::allocate(allocation.length)?;
        let file = NewFile::new(BufferFile::new(buffer.clone())?, true)?.reserve()?;
        allocation.length = buffer.length() as u64;
        allocation.runs = buffer.runs() as u32;
        allocation.file = file.descriptor();
        allocation.id = self.add_buffer(buffer)?;
        match ioctl::copy_to_user(&allocation, address) {
            Ok(_) => {
                file.install();
                Ok(0)
            }
            Err(error) => {
                self.remove_buffer(allocation.id)?;
                Err(error)
            }
        }
    }

    fn import_buffer(&self, address: usize) -> Result<isize> {
        let mut allocation: Allocation = ioctl::copy_from_user(address)?;
        if allocation.reserved != 0 {
            return Err(EINVAL);
        }
        let buffer =
            with_descriptor::<BufferFile, _>(allocation.file, |file| file.buffer().clone())?;
        allocation.length = buffer.length() as u64;
        allocation.runs = buffer.runs() as u32;
        allocation.id = self.add_buffer(buffer)?;
        ioctl::copy_to_user(&allocation, address).inspect_err(|_| {
            let _ = self.remove_buffer(allocation.id);
        })
    }

    fn open_trace(&self, address: usize) -> Result<isize> {
        capability::require_sys_admin()?;
        let file = NewFile::new(
            TraceFile::new(self.device.device_observer().clone())?,
            false,
        )?
        .reserve()?;
        let trace = Trace {
            length: TraceFile::LENGTH as u64,
            file: file.descriptor(),
            reserved: 0,
        };
        ioctl::copy_to_user(&trace, address)?;
        file.install();
        Ok(0)
    }

    fn set_event(&self, descriptor: u32) -> Result<isize> {
        let event = match descriptor {
            NO_FILE => None,
            descriptor => Some(EventFd::from_descriptor(descriptor)?),
        };
        self.observer.set_event(event);
        Ok(0)
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        let buffers = self.buffers.count();
        self.observer
            .count(|counters| counters.buffers.subtract(buffers));
    }
}

impl Mmap for OpenFile {
    fn map(&self, mapping: NewMapping<'_, Self>) -> Result {
        self.device.map(mapping, self.map_mode.load(Relaxed))
    }
}

impl Mappable for OpenFile {
    fn mapped(&self) -> Result {
        // A mapping that removal could not find any more is refused here.
        self.device
            .space()
            .while_open(|| self.duplicated())
            .ok_or(ENODEV)
    }

    fn duplicated(&self) {
        self.device.count_mapping(true);
        self.observer.count(|counters| counters.mappings.add(1));
    }

    fn unmapped(&self) {
        self.device.count_mapping(false);
        self.observer
            .count(|counters| counters.mappings.subtract(1));
    }

    fn fault<'a>(&self, fault: Fault<'a>) -> FaultResult<'a> {
        let huge = fault.is_huge();
        let result = self.device.fault(fault);
        if result.is_mapped() {
            self.observer.count(|counters| {
                if huge {
                    counters.huge_faults.add(1);
                } else {
                    counters.faults.add(1);
                }
            });
        }
        result
    }
}

static TABLE: chardev::Table<OpenFile> = chardev::Table::new();

impl FileOperations for OpenFile {
    type Device = Vdma;

    fn table() -> &'static chardev::Table<Self> {
        &TABLE
    }

    fn open(device: Arc<Vdma>, opening: &mut Opening<'_>) -> Result<Self> {
        let buffers = KBox::pin_init(BufferTable::new(), GFP_KERNEL_ACCOUNT)?;
        let observer = Observer::new(device.device_observer().clone())?;
        let (read, write) = opening.access();
        opening.share_mappings(device.space())?;
        Ok(Self {
            device,
            observer,
            buffers,
            map_mode: Atomic::new(MAP_EAGER),
            rights: Rights { read, write },
        })
    }

    fn read<'a>(&self, kiocb: Kiocb<'a>, iter: IovIter<'_>) -> IoResult<'a> {
        self.device
            .read_write(&self.observer, Direction::Read, kiocb, iter)
    }

    fn write<'a>(&self, kiocb: Kiocb<'a>, iter: IovIter<'_>) -> IoResult<'a> {
        self.device
            .read_write(&self.observer, Direction::Write, kiocb, iter)
    }

    fn size(&self) -> u64 {
        self.device.memory_size()
    }

    fn sync(&self) -> Result {
        self.device.flush(self.observer.clone())
    }

    fn ioctl(&self, command: u32, argument: usize) -> Result<isize> {
        match command {
            IOCTL_INFO => ioctl::copy_to_user(self.device.info(), argument),
            IOCTL_FILE_STATISTICS => {
                ioctl::copy_to_user(&self.observer.counters.snapshot(), argument)
            }
            IOCTL_DEVICE_STATISTICS => {
                ioctl::copy_to_user(&self.device.device_observer().counters.snapshot(), argument)
            }
            IOCTL_MAP_MODE => match ioctl::read_u32(argument)? {
                mode @ (MAP_EAGER | MAP_LAZY) => {
                    self.map_mode.store(mode, Relaxed);
                    Ok(0)
                }
                _ => Err(EINVAL),
            },
            IOCTL_CACHE_MODE => {
                let cache = ioctl::read_u32(argument)?;
                capability::require_sys_admin()?;
                self.device.set_cache(cache).map(|()| 0)
            }
            IOCTL_RUN => self.commands().run(argument),
            IOCTL_RUN_BATCH => self.commands().run_batch(argument),
            IOCTL_REGISTER_BUFFER => self.register_buffer(argument),
            IOCTL_ALLOCATE_BUFFER => self.allocate_buffer(argument),
            IOCTL_IMPORT_BUFFER => self.import_buffer(argument),
            IOCTL_RELEASE_BUFFER => self.remove_buffer(ioctl::read_u32(argument)?).map(|()| 0),
            IOCTL_TRACE => self.open_trace(argument),
            IOCTL_EXPLAIN => {
                capability::require_sys_admin()?;
                self.device.explain(argument)
            }
            IOCTL_EVENTFD => self.set_event(ioctl::read_u32(argument)?),
            _ => Err(ENOTTY),
        }
    }

    fn command<'a>(&self, submission: UringSubmission<'a>) -> UringResult<'a> {
        if submission.operation() != URING_RUN {
            return submission.fail(ENOTTY);
        }
        // No flag is supported, such as the one for buffers that are registered with the ring.
        if submission.flags() != 0 {
            return submission.fail(EINVAL);
        }
        let when_full = WhenFull::of_caller(submission.no_wait());
        let address = submission.address();
        let (command, queued) = submission.into_async();
        let mut target = Some(TransferTarget::Command(command));
        match self.commands().start(address, &mut target, when_full) {
            Ok(_) => queued.queued(),
            Err(error) => queued.failed(error, target.and_then(TransferTarget::into_command)),
        }
    }

    fn iopoll(&self) -> usize {
        let completions = self.device.poll_completions();
        self.observer
            .count(|counters| counters.polled.add(completions));
        completions
    }

    fn poll(&self, poll: &Poll<'_>) -> Readiness {
        self.device.poll(poll)
    }

    fn show(&self, out: &SeqFile) {
        let statistics = self.observer.counters.snapshot();
        for (name, value) in Statistics::NAMES.into_iter().zip(statistics.values()) {
            seq_print!(out, "vdma-");
            for part in name.split_inclusive('_') {
                match part.strip_suffix('_') {
                    Some(part) => seq_print!(out, "{part}-"),
                    None => seq_print!(out, "{part}"),
                }
            }
            seq_print!(out, ":\t{value}\n");
        }
    }
}
