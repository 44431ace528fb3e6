// SPDX-License-Identifier: GPL-2.0

//! An open file of `/dev/vdmaN`.

use kernel::{
    prelude::*,
    seq_file::SeqFile,
    seq_print,
    sync::{
        Arc,
        aref::ARef,
        atomic::{Atomic, Relaxed},
    },
};

use crate::{
    io::{
        device::{Place, Submit, Vdma},
        pages::Buffers,
        queue::WhenFull,
        transfer::{Completer, Transfer},
    },
    linux::{
        anon_file::{NewFile, with_descriptor},
        capability,
        chardev::{AsyncIocb, FileOperations, Io, Iocb, Mmap, Opening, Poll, Readiness},
        eventfd::EventFd,
        uring_cmd::Submission,
        vma::{Fault, FaultResult, Mappable, NewMapping, SpaceGuard},
    },
    observe::{Observer, counters::Direction, trace_file::TraceFile},
    operations::{
        buffer::{Buffer, BufferFile, BufferTable},
        command::{self, BatchCommands, CallerMemory, Rights},
        ioctl,
    },
    protocol::{
        Allocation, Command, IOCTL_ALLOCATE_BUFFER, IOCTL_CACHE_MODE, IOCTL_DEVICE_STATISTICS,
        IOCTL_EVENTFD, IOCTL_EXPLAIN, IOCTL_FILE_STATISTICS, IOCTL_IMPORT_BUFFER, IOCTL_INFO,
        IOCTL_MAP_MODE, IOCTL_REGISTER_BUFFER, IOCTL_RELEASE_BUFFER, IOCTL_RUN, IOCTL_RUN_BATCH,
        IOCTL_TRACE, MAP_EAGER, MAP_LAZY, NO_FILE, Registration, Statistics, Trace, URING_RUN,
    },
};

/// What a caller does when there is no room, if it may (not) wait.
fn when_full(no_wait: bool) -> WhenFull {
    if no_wait {
        WhenFull::Fail
    } else {
        WhenFull::Wait
    }
}

/// What an open file keeps.
pub(crate) struct OpenFile {
    device: Arc<Vdma>,
    observer: Arc<Observer>,
    buffers: Pin<KBox<BufferTable>>,
    /// How later mappings are filled: `MAP_*`.
    map_mode: Atomic<u32>,
    rights: Rights,
    _space: SpaceGuard,
}

impl OpenFile {
    /// Moves the caller's buffers to or from device memory.
    ///
    /// The pages are pinned and the requests submitted in the caller's context. An asynchronous call
    /// ends there, a plain one waits.
    fn transfer(
        &self,
        direction: Direction,
        iocb: Iocb<'_>,
        mut buffers: Buffers<'_>,
    ) -> Result<Io> {
        let position = iocb.position();
        let left = self.device.memory_size().saturating_sub(position);
        let length = buffers.len();
        if length == 0 {
            return Ok(Io::Done(0));
        }
        if left == 0 {
            return match direction {
                Direction::Write => Err(ENOSPC),
                _ => Ok(Io::Done(0)),
            };
        }
        if length as u64 > left {
            buffers.truncate(left as usize);
        }

        if let Some(copied) = self.device.copy_inline(direction, position, &mut buffers) {
            let bytes = copied?;
            self.observer.count(|counters| {
                counters.inline_copies.add(1);
                counters.moved(direction, bytes);
            });
            return Ok(Io::Done(bytes));
        }
        let place = Place {
            direction,
            position,
        };
        match iocb.asynchronous() {
            Some(caller) => self
                .queue_transfer(place, &iocb, caller, buffers)
                .map(|()| Io::Queued),
            None => self.wait_for_transfer(place, &iocb, buffers).map(Io::Done),
        }
    }

    /// Submits a read or write whose caller does not wait.
    fn queue_transfer(
        &self,
        place: Place,
        iocb: &Iocb<'_>,
        caller: AsyncIocb,
        mut buffers: Buffers<'_>,
    ) -> Result {
        let (job, verified) = self.device.job(place, &buffers);
        let submit = Submit {
            when_full: when_full(iocb.no_wait()),
            polled: iocb.polled(),
            verified,
            batched: true,
            pipelined: false,
            looks: None,
        };
        if let Some(pages) = self.device.pages_of_one(&buffers) {
            return self.device.submit_whole(
                caller,
                &self.observer,
                &job,
                &mut buffers,
                pages,
                submit,
            );
        }
        self.check_room(&buffers, submit)?;
        let (combine, value) = job.combination();
        let completer = Some(Completer::Iocb(caller));
        let transfer = Transfer::new(completer, self.observer.clone(), combine, value)?;
        let (outgoing, incoming) = place.memory(buffers);
        let queue = self.device.queue()?;
        self.device
            .submit(queue, &transfer, &job, outgoing, incoming, submit)
            .map(drop)
    }

    /// Runs a read or write whose caller waits for it.
    fn wait_for_transfer(
        &self,
        place: Place,
        iocb: &Iocb<'_>,
        buffers: Buffers<'_>,
    ) -> Result<usize> {
        // Pages that are not pinned stay with their owner only until the call ends, so a signal may
        // not end it before the device is done with them.
        let interruptible = buffers.will_pin();
        let (job, verified) = self.device.job(place, &buffers);
        let submit = Submit {
            when_full: when_full(iocb.no_wait()),
            // The caller looks itself.
            polled: false,
            verified,
            batched: false,
            // More parts need more room, for which not everybody waits.
            pipelined: !iocb.no_wait(),
            looks: interruptible.then(|| iocb.polled()),
        };
        if self.device.pages_of_one(&buffers).is_none() {
            self.check_room(&buffers, submit)?;
        }
        let (combine, value) = job.combination();
        let transfer = Transfer::new(None, self.observer.clone(), combine, value)?;
        let (outgoing, incoming) = place.memory(buffers);
        let queue = self.device.queue()?;
        let looking = self
            .device
            .submit(queue, &transfer, &job, outgoing, incoming, submit)?;
        if let Some(looking) = looking {
            self.device.look_for(
                &transfer,
                job.length,
                iocb.polled(),
                looking,
                &self.observer,
            );
        }
        if interruptible {
            transfer.wait_interruptible()
        } else {
            transfer.wait()
        }
    }

    /// `EAGAIN` when there is no room for all requests of a caller that may not wait: it tries again from
    /// where it may.
    fn check_room(&self, buffers: &Buffers<'_>, submit: Submit) -> Result {
        if submit.when_full == WhenFull::Fail && !self.device.has_room_for(buffers) {
            return Err(EAGAIN);
        }
        Ok(())
    }

    /// Starts the command at `address` in user space.
    fn start(
        &self,
        address: u64,
        completer: Option<Completer>,
        when_full: WhenFull,
    ) -> Result<ARef<Transfer>> {
        let command: Command = command::read(address)?;
        let mut scratch = [CallerMemory::empty(), CallerMemory::empty()];
        let info = self.device.info();
        let checked = command::check(
            &command,
            info.operations,
            info.memory_size,
            self.rights,
            &self.buffers,
            &mut scratch,
        )?;
        // Who may not wait may not stop half-way either.
        let fits = self.device.fits(
            checked.job.length as usize,
            &checked.outgoing,
            &checked.incoming,
        );
        if when_full == WhenFull::Fail && !fits {
            return Err(EAGAIN);
        }
        let batched = completer.is_some();
        let (combine, value) = checked.job.combination();
        let transfer = Transfer::new(completer, self.observer.clone(), combine, value)?;
        let submit = Submit {
            when_full,
            polled: false,
            verified: false,
            batched,
            pipelined: !batched,
            looks: None,
        };
        let queue = self.device.queue()?;
        self.device.submit(
            queue,
            &transfer,
            &checked.job,
            checked.outgoing,
            checked.incoming,
            submit,
        )?;
        Ok(transfer)
    }

    fn run(&self, address: usize) -> Result<isize> {
        let transfer = self.start(address as u64, None, WhenFull::Wait)?;
        // The device may not write to memory that the caller believes to have back.
        transfer.wait_killable()?;
        let result = transfer.result();
        command::write_results(
            address as u64,
            result.map(|bytes| bytes as i64),
            transfer.value(),
        )?;
        Ok(0)
    }

    fn run_batch(&self, address: usize) -> Result<isize> {
        let commands = BatchCommands::read(address)?;
        let mut started = KVVec::new();
        for address in commands.addresses() {
            started.push(
                (address, self.start(address, None, WhenFull::Wait)),
                GFP_KERNEL,
            )?;
        }
        let mut done = 0;
        for (address, started) in &started {
            let (result, value) = match started {
                Ok(transfer) => {
                    transfer.wait_killable()?;
                    (
                        transfer.result().map(|bytes| bytes as i64),
                        transfer.value(),
                    )
                }
                Err(error) => (Err(*error), 0),
            };
            command::write_results(*address, result, value)?;
            done += 1;
        }
        BatchCommands::write_done(address, done)?;
        Ok(0)
    }

    /// Adds a buffer to the file's.
    fn add_buffer(&self, buffer: Arc<Buffer>) -> Result<u32> {
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
        let mut registration: Registration = ioctl::question(address)?;
        if registration.reserved != 0 {
            return Err(EINVAL);
        }
        let buffer = Buffer::register(registration.address, registration.length)?;
        registration.id = self.add_buffer(Arc::new(buffer, GFP_KERNEL)?)?;
        ioctl::answer(&registration, address).inspect_err(|_| {
            let _ = self.remove_buffer(registration.id);
        })
    }

    fn allocate_buffer(&self, address: usize) -> Result<isize> {
        let mut allocation: Allocation = ioctl::question(address)?;
        if allocation.reserved != 0 {
            return Err(EINVAL);
        }
        let buffer = Arc::new(Buffer::allocate(allocation.length)?, GFP_KERNEL)?;
        let file = NewFile::new(BufferFile(buffer.clone()), true)?.reserve()?;
        allocation.length = buffer.length() as u64;
        allocation.runs = buffer.runs() as u32;
        allocation.file = file.descriptor();
        allocation.id = self.add_buffer(buffer)?;
        match ioctl::answer(&allocation, address) {
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
        let mut allocation: Allocation = ioctl::question(address)?;
        if allocation.reserved != 0 {
            return Err(EINVAL);
        }
        let buffer = with_descriptor::<BufferFile, _>(allocation.file, |file| file.0.clone())?;
        allocation.length = buffer.length() as u64;
        allocation.runs = buffer.runs() as u32;
        allocation.id = self.add_buffer(buffer)?;
        ioctl::answer(&allocation, address).inspect_err(|_| {
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
        ioctl::answer(&trace, address)?;
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
    fn map(&self, mapping: NewMapping<'_>) -> Result {
        // SAFETY: This is the state of the file that is being mapped.
        unsafe {
            self.device
                .map::<Self>(mapping, self.map_mode.load(Relaxed))
        }
    }
}

impl Mappable for OpenFile {
    fn mapped(&self) -> Result {
        // Whoever is too late to be found by removal is turned away here.
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

    fn fault(&self, fault: Fault<'_>) -> FaultResult {
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

impl FileOperations for OpenFile {
    type Device = Vdma;

    fn open(device: Arc<Vdma>, opening: &Opening) -> Result<Self> {
        let buffers = KBox::pin_init(BufferTable::new(), GFP_KERNEL)?;
        let observer = Observer::new(device.device_observer().clone())?;
        let (read, write) = opening.access();
        // SAFETY: These are the arguments of `->open`.
        let space = unsafe { device.space().adopt(opening.inode, opening.file) };
        Ok(Self {
            device,
            observer,
            buffers,
            map_mode: Atomic::new(MAP_EAGER),
            rights: Rights { read, write },
            _space: space,
        })
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
        self.device.flush(self.observer.clone())
    }

    fn ioctl(&self, command: u32, argument: usize) -> Result<isize> {
        match command {
            IOCTL_INFO => ioctl::answer(self.device.info(), argument),
            IOCTL_FILE_STATISTICS => ioctl::answer(&self.observer.counters.snapshot(), argument),
            IOCTL_DEVICE_STATISTICS => {
                ioctl::answer(&self.device.device_observer().counters.snapshot(), argument)
            }
            IOCTL_MAP_MODE => match ioctl::choice(argument)? {
                mode @ (MAP_EAGER | MAP_LAZY) => {
                    self.map_mode.store(mode, Relaxed);
                    Ok(0)
                }
                _ => Err(EINVAL),
            },
            IOCTL_CACHE_MODE => {
                let cache = ioctl::choice(argument)?;
                capability::require_sys_admin()?;
                self.device.set_cache(cache).map(|()| 0)
            }
            IOCTL_RUN => self.run(argument),
            IOCTL_RUN_BATCH => self.run_batch(argument),
            IOCTL_REGISTER_BUFFER => self.register_buffer(argument),
            IOCTL_ALLOCATE_BUFFER => self.allocate_buffer(argument),
            IOCTL_IMPORT_BUFFER => self.import_buffer(argument),
            IOCTL_RELEASE_BUFFER => self.remove_buffer(ioctl::choice(argument)?).map(|()| 0),
            IOCTL_TRACE => self.open_trace(argument),
            IOCTL_EXPLAIN => {
                capability::require_sys_admin()?;
                self.device.explain(argument)
            }
            IOCTL_EVENTFD => self.set_event(ioctl::choice(argument)?),
            _ => Err(ENOTTY),
        }
    }

    fn command(&self, submission: &Submission) -> Result {
        if submission.operation() != URING_RUN {
            return Err(ENOTTY);
        }
        // Buffers that are registered with the ring, for one: there are others here.
        if submission.flags() != 0 {
            return Err(EINVAL);
        }
        let when_full = when_full(submission.no_wait());
        let completer = Completer::Command(submission.queue());
        self.start(submission.address(), Some(completer), when_full)
            .map(|_| ())
    }

    fn look(&self) -> usize {
        let found = self.device.look();
        self.observer.count(|counters| counters.polled.add(found));
        found
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
