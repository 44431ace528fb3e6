// SPDX-License-Identifier: GPL-2.0

//! Registration of a driver with the virtio bus.
//!
//! The bus calls `probe` and `remove` with the lock of the virtio device, and the four others,
//! around suspend and function reset, with that of the transport's device: they do not exclude each
//! other. So the driver's data is counted, and found under RCU: a callback that comes too late does
//! nothing, and one that is running keeps what it uses, and the module (see
//! [`crate::linux::unload`]). What changes the state of the device needs the
//! [`Control`](super::Control), whose lock is the innermost of the three.

use core::{marker::PhantomData, ptr, ptr::NonNull};

use kernel::{
    bindings,
    error::from_result,
    ffi::{c_int, c_void},
    prelude::*,
    sync::{
        Arc, ArcBorrow,
        atomic::{Acquire, Atomic, Full, Release},
        rcu,
    },
    types::Opaque,
};

use super::{Device, device::Private};
use crate::linux::bindings::{
    __register_virtio_driver, unregister_virtio_driver, virtio_device, virtio_device_id,
    virtio_driver,
};

/// A driver for devices on the virtio bus.
pub(crate) trait Driver: 'static {
    /// What the driver keeps for each device that it is bound to.
    type Data: Send + Sync + 'static;

    /// Device-specific feature bits that the driver knows; the bus acknowledges those of them that
    /// the device offers, before [`Driver::probe`].
    const FEATURES: &'static [u32];

    /// Binds to a device. The device uses no queue before [`super::Control::set_ready`].
    fn probe(device: &Device<'_>) -> Result<Arc<Self::Data>>;

    /// Stops using the device: it is about to be reset, or to sleep. The queues have to be deleted
    /// when this returns. May run beside [`Driver::remove`].
    fn quiesce(device: &Device<'_>, data: &Self::Data);

    /// Uses the device again, which has been reset and has its features negotiated. May run beside
    /// [`Driver::remove`].
    fn resume(device: &Device<'_>, data: &Self::Data) -> Result;

    /// Unbinds from a device. Queues that are left when this returns are deleted.
    fn remove(device: &Device<'_>, data: &Self::Data);
}

/// Virtio vendor id that stands for any (`VIRTIO_DEV_ANY_ID`).
const ANY_VENDOR: u32 = 0xffff_ffff;

/// Ids of the devices that the module drives, for the bus and, by its name, for modpost, which
/// makes the module's alias from it. A zero entry ends the table.
#[export_name = concat!("__mod_device_table__", line!(), "__kmod_", module_path!(), "__virtio__ID_TABLE")]
static ID_TABLE: [virtio_device_id; 2] = [
    virtio_device_id {
        device: crate::protocol::DEVICE_ID,
        vendor: ANY_VENDOR,
    },
    virtio_device_id {
        device: 0,
        vendor: 0,
    },
];

/// `priv` of a device, which the driver that it is bound to may use.
///
/// # Safety
///
/// `raw` is valid for `'a`.
unsafe fn private_of<'a>(raw: NonNull<virtio_device>) -> &'a Atomic<*mut c_void> {
    // SAFETY: The device is valid. While the driver is bound, or being bound or unbound, all
    // accesses that may be concurrent with others are atomic.
    unsafe { Atomic::from_ptr(&raw mut (*raw.as_ptr()).priv_) }
}

/// The registration of `T`; dropping it unbinds every device.
#[pin_data(PinnedDrop)]
pub(crate) struct DriverRegistration<T: Driver> {
    #[pin]
    raw: Opaque<virtio_driver>,
    _driver: PhantomData<T>,
}

// SAFETY: Nothing can be done with a shared reference.
unsafe impl<T: Driver> Sync for DriverRegistration<T> {}
// SAFETY: A driver may be unregistered from any task.
unsafe impl<T: Driver> Send for DriverRegistration<T> {}

impl<T: Driver> DriverRegistration<T> {
    /// Registers `T`. Devices are probed before this returns.
    pub(crate) fn new(
        name: &'static CStr,
        module: &'static ThisModule,
    ) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            raw <- Opaque::try_ffi_init(|slot: *mut virtio_driver| {
                let mut driver = virtio_driver {
                    id_table: ID_TABLE.as_ptr(),
                    feature_table: T::FEATURES.as_ptr(),
                    feature_table_size: T::FEATURES.len() as u32,
                    probe: Some(Self::probe),
                    remove: Some(Self::remove),
                    freeze: Some(Self::quiesce),
                    restore: Some(Self::resume),
                    reset_prepare: Some(Self::quiesce),
                    reset_done: Some(Self::resume),
                    ..Default::default()
                };
                driver.driver.name = name.as_ptr().cast();
                // SAFETY: `slot` is valid for writes.
                unsafe { slot.write(driver) };
                // SAFETY: The structure is pinned and lives until it is unregistered in `drop`.
                kernel::error::to_result(unsafe { __register_virtio_driver(slot, module.as_ptr()) })
            }),
            _driver: PhantomData,
        }? Error)
    }

    /// The device's `Private`, and the driver's data, unless the driver is being unbound.
    ///
    /// # Safety
    ///
    /// `raw` is a valid device whose driver is, or was a moment ago, `T`.
    unsafe fn bound(raw: NonNull<virtio_device>) -> Option<(Arc<Private>, Arc<T::Data>)> {
        let _guard = rcu::read_lock();
        // SAFETY: The device is valid.
        let private = NonNull::new(unsafe { private_of(raw) }.load(Acquire))?;
        // SAFETY: `probe` has stored a share, which `remove` drops only after a grace period that
        // this critical section is not part of, and after it has cleared the pointer.
        let private: Arc<Private> =
            unsafe { ArcBorrow::from_raw(private.as_ptr().cast::<Private>().cast_const()) }.into();
        let data = NonNull::new(private.data.load(Acquire))?;
        // SAFETY: `probe` has stored a share in a `T::Data`, which `remove` drops in the same way.
        let data: Arc<T::Data> =
            unsafe { ArcBorrow::from_raw(data.as_ptr().cast::<T::Data>().cast_const()) }.into();
        Some((private, data))
    }

    unsafe extern "C" fn probe(raw: *mut virtio_device) -> c_int {
        from_result(|| {
            let raw = NonNull::new(raw).ok_or(EINVAL)?;
            let private = Private::new()?;
            let share = Arc::into_raw(private.clone()).cast_mut().cast();
            // SAFETY: The bus hands in a valid device for the duration of the call.
            unsafe { private_of(raw) }.store(share, Release);
            // SAFETY: The device is valid during the call, and the private part was made for it.
            let device = unsafe { Device::new(raw, &private) };
            match T::probe(&device) {
                Ok(data) => {
                    let data = Arc::into_raw(data).cast_mut().cast::<c_void>();
                    private.data.store(data, Release);
                    Ok(0)
                }
                Err(error) => {
                    device.retire();
                    // SAFETY: The device is valid, its share was stored above, and no queue is
                    // left.
                    unsafe { Self::release_private(raw) };
                    Err(error)
                }
            }
        })
    }

    unsafe extern "C" fn quiesce(raw: *mut virtio_device) -> c_int {
        // SAFETY: The transport calls this for a valid device, which it has locked itself, and
        // whose driver it has found to be `T`; that may be unbound meanwhile.
        let Some(raw) = NonNull::new(raw) else {
            return 0;
        };
        // SAFETY: The device is valid, as said above.
        if let Some((private, data)) = unsafe { Self::bound(raw) } {
            // SAFETY: The device is valid during the call, and the private part is that of its
            // driver.
            T::quiesce(&unsafe { Device::new(raw, &private) }, &data);
        }
        0
    }

    unsafe extern "C" fn resume(raw: *mut virtio_device) -> c_int {
        let Some(raw) = NonNull::new(raw) else {
            return 0;
        };
        // SAFETY: The transport calls this for a valid device, which it has locked itself, and
        // whose driver it has found to be `T`; that may be unbound meanwhile.
        let Some((private, data)) = (unsafe { Self::bound(raw) }) else {
            // The virtio core starts a device whose driver has resumed.
            return ENODEV.to_errno();
        };
        // SAFETY: The device is valid during the call, and the private part is that of its driver.
        let device = unsafe { Device::new(raw, &private) };
        from_result(|| T::resume(&device, &data).map(|()| 0))
    }

    unsafe extern "C" fn remove(raw: *mut virtio_device) {
        let Some(raw) = NonNull::new(raw) else {
            return;
        };
        // SAFETY: The bus calls this for a valid device that was probed, once.
        let Some((private, data)) = (unsafe { Self::bound(raw) }) else {
            return;
        };
        // SAFETY: The device is valid during the call, and the private part was made for it.
        let device = unsafe { Device::new(raw, &private) };
        T::remove(&device, &data);
        // Callbacks that have found the data, and wait for the control, find the device gone.
        device.retire();
        let share = private.data.xchg(ptr::null_mut(), Full);
        // SAFETY: The device is valid, `probe` has stored its share, and no queue is left. This
        // waits for those who are about to take a share in the data as well.
        unsafe { Self::release_private(raw) };
        // SAFETY: `probe` has stored this share, and the pointer was cleared above, a grace period
        // ago.
        drop(unsafe { Arc::from_raw(share.cast::<T::Data>().cast_const()) });
    }

    /// Clears `priv`, and drops the share that was there after a grace period. May sleep.
    ///
    /// # Safety
    ///
    /// `raw` is valid, `priv` has a share in its `Private`, and it has no queues.
    unsafe fn release_private(raw: NonNull<virtio_device>) {
        // Readers are in RCU critical sections, or interrupts of queues, of which there are none.
        // SAFETY: The caller vouches for the device.
        let share = unsafe { private_of(raw) }.xchg(ptr::null_mut(), Full);
        // SAFETY: No precondition beyond a context that may sleep.
        unsafe { bindings::synchronize_rcu() };
        // SAFETY: `probe` has stored this share, and nothing finds it any more.
        drop(unsafe { Arc::from_raw(share.cast::<Private>().cast_const()) });
    }
}

#[pinned_drop]
impl<T: Driver> PinnedDrop for DriverRegistration<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: The driver was registered when this object was made. Every device is unbound when
        // this returns. A function reset that has read the device's driver before, and calls it
        // after, is the virtio core's to exclude: it does not hold the lock that unbinding takes.
        unsafe { unregister_virtio_driver(self.raw.get()) }
    }
}
