// SPDX-License-Identifier: GPL-2.0

//! Slab caches: objects of one type, packed into pages and recycled without going back to the page
//! allocator, and visible under their own name in `/proc/slabinfo`.

use core::{
    marker::PhantomData,
    mem::{MaybeUninit, align_of, size_of},
    ops::Deref,
    pin::Pin,
    ptr::{self, NonNull},
};

use kernel::{
    bindings,
    prelude::*,
    sync::atomic::{Acquire, Atomic, Full, Release},
};

use crate::linux::bindings::{VDMA_SLAB_CACHE_DMA32, VDMA_SLAB_HWCACHE_ALIGN, VDMA_SLAB_NO_MERGE};

/// The place of a cache, in a `static` of the type whose objects it holds.
///
/// Null while no [`Registration`] of the type exists.
pub(crate) struct Cache<T> {
    raw: Atomic<*mut bindings::kmem_cache>,
    _objects: PhantomData<fn(T)>,
}

impl<T> Cache<T> {
    pub(crate) const fn new() -> Self {
        Self {
            raw: Atomic::new(ptr::null_mut()),
            _objects: PhantomData,
        }
    }
}

/// A type whose objects live in a slab cache.
pub(crate) trait Cached: Sized + 'static {
    /// Where the cache of this type is.
    fn cache() -> &'static Cache<Self>;
}

/// Keeps the cache of `T` in existence.
pub(crate) struct Registration<T: Cached>(PhantomData<T>);

/// Where the pages of a cache come from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Zone {
    /// Anywhere.
    Normal,
    /// Below 4 GiB.
    Dma32,
}

impl<T: Cached> Registration<T> {
    /// Creates the cache. `SLAB_NO_MERGE` keeps it from being folded into another of the same size.
    pub(crate) fn new(name: &'static CStr, zone: Zone) -> Result<Self> {
        let zone = if zone == Zone::Dma32 {
            VDMA_SLAB_CACHE_DMA32
        } else {
            0
        };
        let mut args = bindings::kmem_cache_args {
            align: align_of::<T>() as u32,
            ..Default::default()
        };
        // SAFETY: The name is static and the arguments are only read during the call.
        let raw = unsafe {
            bindings::__kmem_cache_create_args(
                name.as_ptr().cast(),
                size_of::<T>() as u32,
                &mut args,
                VDMA_SLAB_HWCACHE_ALIGN | VDMA_SLAB_NO_MERGE | zone,
            )
        };
        if raw.is_null() {
            return Err(ENOMEM);
        }
        T::cache().raw.store(raw, Release);
        Ok(Self(PhantomData))
    }
}

impl<T: Cached> Drop for Registration<T> {
    fn drop(&mut self) {
        let raw = T::cache().raw.xchg(ptr::null_mut(), Full);
        // SAFETY: `new` created the cache. The module drops this last, when no driver is bound and no
        // file is open any more, so no object is left in it; the kernel warns if one is.
        unsafe { bindings::kmem_cache_destroy(raw) }
    }
}

/// Allocates and initializes an object. May sleep.
///
/// The object is freed with [`free`], or never.
pub(crate) fn allocate<T: Cached, E>(init: impl PinInit<T, E>) -> Result<NonNull<T>>
where
    Error: From<E>,
{
    let cache = T::cache().raw.load(Acquire);
    if cache.is_null() {
        return Err(ENOMEM);
    }
    // SAFETY: The cache exists for as long as the module is in use.
    let raw = unsafe { bindings::kmem_cache_alloc_noprof(cache, bindings::GFP_KERNEL) };
    let mut slot = NonNull::new(raw.cast::<MaybeUninit<T>>()).ok_or(ENOMEM)?;
    // SAFETY: The cache gives memory with the size and alignment of `T`, which nobody else uses and
    // which does not move until it is freed. The reference ends with this function.
    match unsafe { slot.as_mut() }.write_pin_init(init) {
        Ok(_) => Ok(slot.cast()),
        Err(error) => {
            // SAFETY: The memory comes from this cache; a failed initializer leaves nothing in it.
            unsafe { bindings::kmem_cache_free(cache, raw) };
            Err(error.into())
        }
    }
}

/// Drops an object and gives its memory back to the cache. Does not sleep unless `T`'s drop does.
///
/// # Safety
///
/// `object` comes from [`allocate`] and nobody uses it any more.
pub(crate) unsafe fn free<T: Cached>(object: NonNull<T>) {
    // SAFETY: The object was initialized by `allocate` and is not used any more.
    unsafe { ptr::drop_in_place(object.as_ptr()) };
    let cache = T::cache().raw.load(Acquire);
    // SAFETY: The memory comes from this cache, which exists while there is an object in it.
    unsafe { bindings::kmem_cache_free(cache, object.as_ptr().cast()) };
}

/// The one owner of an object in a slab cache.
pub(crate) struct SlabBox<T: Cached>(NonNull<T>);

// SAFETY: The box owns its object as a `KBox` does, and caches serve every CPU.
unsafe impl<T: Cached + Send> Send for SlabBox<T> {}

impl<T: Cached> SlabBox<T> {
    /// Allocates an object. May sleep.
    pub(crate) fn new<E>(init: impl PinInit<T, E>) -> Result<Self>
    where
        Error: From<E>,
    {
        allocate(init).map(Self)
    }

    /// Gives the object away as a pointer, to be taken back with [`SlabBox::from_raw`].
    pub(crate) fn into_raw(self) -> NonNull<T> {
        let object = self.0;
        core::mem::forget(self);
        object
    }

    /// Takes an object back.
    ///
    /// # Safety
    ///
    /// `object` comes from [`SlabBox::into_raw`], and is taken back once.
    pub(crate) unsafe fn from_raw(object: NonNull<T>) -> Self {
        Self(object)
    }

    /// Access for the owner.
    pub(crate) fn as_mut(&mut self) -> Pin<&mut T> {
        // SAFETY: The box owns the object, which does not move before it is freed.
        unsafe { Pin::new_unchecked(self.0.as_mut()) }
    }
}

impl<T: Cached> Deref for SlabBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: The box owns the object.
        unsafe { self.0.as_ref() }
    }
}

impl<T: Cached> Drop for SlabBox<T> {
    fn drop(&mut self) {
        // SAFETY: The object was allocated for this box, which is its only owner and goes now.
        unsafe { free(self.0) }
    }
}
