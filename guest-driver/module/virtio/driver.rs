// SPDX-License-Identifier: GPL-2.0

//! Registration of a driver with the virtio bus.

use core::{marker::PhantomData, ptr};

use kernel::{
    error::from_result,
    ffi::c_int,
    prelude::*,
    types::{ForeignOwnable, Opaque},
};

use super::{Device, device::Private};
use crate::linux::bindings::{
    __register_virtio_driver, unregister_virtio_driver, virtio_device, virtio_device_id,
    virtio_driver,
};

/// A driver for devices on the virtio bus.
pub(crate) trait Driver: 'static {
    /// What the driver keeps for each device that it is bound to.
    type Data: ForeignOwnable;

    /// Device-specific feature bits that the driver knows; the bus acknowledges those of them that
    /// the device offers, before [`Driver::probe`].
    const FEATURES: &'static [u32];

    /// Binds to a device. The device answers nothing before [`Device::set_ready`].
    fn probe(device: &Device) -> Result<Self::Data>;

    /// Stops using the device: it is about to be reset by somebody else, or to sleep. The queues have
    /// to be deleted when this returns.
    fn quiesce(device: &Device, data: <Self::Data as ForeignOwnable>::Borrowed<'_>);

    /// Uses the device again, which has been reset and has its features negotiated.
    fn resume(device: &Device, data: <Self::Data as ForeignOwnable>::Borrowed<'_>) -> Result;

    /// Lets a device go. It has to be reset, and its queues deleted, when this returns.
    fn remove(device: &Device, data: Self::Data);
}

/// Virtio vendor id that stands for any (`VIRTIO_DEV_ANY_ID`).
const ANY_VENDOR: u32 = 0xffff_ffff;

/// Ids of the devices that the module drives, for the bus and, by its name, for modpost, which makes
/// the module's alias from it. A zero entry ends the table.
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

/// The registration of `T`; dropping it unbinds every device.
#[pin_data(PinnedDrop)]
pub(crate) struct Registration<T: Driver> {
    #[pin]
    raw: Opaque<virtio_driver>,
    _driver: PhantomData<T>,
}

// SAFETY: Nothing can be done with a shared reference.
unsafe impl<T: Driver> Sync for Registration<T> {}
// SAFETY: A driver may be unregistered from any task.
unsafe impl<T: Driver> Send for Registration<T> {}

impl<T: Driver> Registration<T> {
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

    extern "C" fn probe(raw: *mut virtio_device) -> c_int {
        // SAFETY: The bus hands in a valid device, and keeps it for the duration of the call.
        let device = unsafe { Device::from_raw(raw) };
        from_result(|| {
            let private = KBox::into_raw(KBox::new(Private::new(), GFP_KERNEL)?);
            device.set_private(private);
            match T::probe(device) {
                Ok(data) => {
                    // SAFETY: The box was made above, and `data` is written before anybody reads it.
                    unsafe { (*private).data = data.into_foreign() };
                    Ok(0)
                }
                Err(error) => {
                    device.set_private(ptr::null_mut());
                    // SAFETY: The box was made above. A failed probe leaves no queue behind, and so
                    // no interrupt that reads it.
                    drop(unsafe { KBox::from_raw(private) });
                    Err(error)
                }
            }
        })
    }

    extern "C" fn quiesce(raw: *mut virtio_device) -> c_int {
        // SAFETY: As in `probe`.
        let device = unsafe { Device::from_raw(raw) };
        // SAFETY: The device is bound, so `probe` has stored the pointer, and `remove` does not run.
        T::quiesce(device, unsafe { T::Data::borrow((*device.private()).data) });
        0
    }

    extern "C" fn resume(raw: *mut virtio_device) -> c_int {
        // SAFETY: As in `probe`.
        let device = unsafe { Device::from_raw(raw) };
        // SAFETY: As in `quiesce`.
        let data = unsafe { T::Data::borrow((*device.private()).data) };
        from_result(|| T::resume(device, data).map(|()| 0))
    }

    extern "C" fn remove(raw: *mut virtio_device) {
        // SAFETY: As in `probe`.
        let device = unsafe { Device::from_raw(raw) };
        // SAFETY: `probe` stored the pointer, and the bus calls `remove` once for each successful
        // `probe`. Interrupts may still read the box.
        let data = unsafe { (*device.private()).data };
        // SAFETY: As above: this is what `into_foreign` returned.
        T::remove(device, unsafe { T::Data::from_foreign(data) });
        let private = device.private();
        device.set_private(ptr::null_mut());
        // SAFETY: The queues are deleted, so nobody reads the box any more.
        drop(unsafe { KBox::from_raw(private) });
    }
}

#[pinned_drop]
impl<T: Driver> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: The driver was registered when this object was made.
        unsafe { unregister_virtio_driver(self.raw.get()) }
    }
}
