// SPDX-License-Identifier: GPL-2.0

//! Slab caches: objects of one type, packed into pages and recycled without going back to the page
//! allocator, and visible under their own name in `/proc/slabinfo`.

use core::{
    marker::PhantomData,
    mem::{MaybeUninit, align_of, size_of},
    ops::{Deref, DerefMut},
    ptr::{self, NonNull},
};

use kernel::{
    bindings,
    prelude::*,
    sync::atomic::{Acquire, Atomic, Full, Relaxed},
};

use crate::linux::bindings::{
    VDMA_SLAB_ACCOUNT, VDMA_SLAB_CACHE_DMA32, VDMA_SLAB_HWCACHE_ALIGN, VDMA_SLAB_NO_MERGE,
};

/// The place of a cache, in a `static` of the type whose objects it holds.
///
/// # Invariants
///
/// `raw` is null, or the cache that the [`CacheGuard`] of the type has created.
pub(crate) struct Cache<T> {
    raw: Atomic<*mut bindings::kmem_cache>,
    _objects: PhantomData<fn(T)>,
}

impl<T> Cache<T> {
    pub(crate) const fn new() -> Self {
        // INVARIANT: Null.
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
///
/// # Invariants
///
/// The cache of `T` was created for this object.
pub(crate) struct CacheGuard<T: Cached>(PhantomData<fn(T)>);

/// Where the pages of a cache come from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Zone {
    /// Anywhere.
    Normal,
    /// Below 4 GiB.
    Dma32,
}

impl<T: Cached> CacheGuard<T> {
    /// Creates the cache: `EBUSY` if it exists. `SLAB_NO_MERGE` keeps it from being folded into
    /// another of the same size; `SLAB_ACCOUNT` charges its objects to the memory cgroup of the
    /// task that allocates them.
    ///
    /// # Safety
    ///
    /// [`Cached::cache`] of `T` always returns the same place. When the result is dropped no object
    /// of the cache is left, and none is allocated any more.
    pub(crate) unsafe fn new(name: &'static CStr, zone: Zone) -> Result<Self> {
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
                VDMA_SLAB_HWCACHE_ALIGN | VDMA_SLAB_NO_MERGE | VDMA_SLAB_ACCOUNT | zone,
            )
        };
        if raw.is_null() {
            return Err(ENOMEM);
        }
        // INVARIANT: The cache that was created above is put in place, if there is none.
        match T::cache().raw.cmpxchg(ptr::null_mut(), raw, Full) {
            Ok(_) => Ok(Self(PhantomData)),
            Err(_) => {
                // SAFETY: The cache was created above, and nothing uses it.
                unsafe { bindings::kmem_cache_destroy(raw) };
                Err(EBUSY)
            }
        }
    }
}

impl<T: Cached> Drop for CacheGuard<T> {
    fn drop(&mut self) {
        // INVARIANT: Null again, before the cache goes.
        let raw = T::cache().raw.xchg(ptr::null_mut(), Full);
        // SAFETY: `new` created the cache, and its caller has promised that no object is left, and
        // that none is allocated any more.
        unsafe { bindings::kmem_cache_destroy(raw) }
    }
}

/// The one owner of an object in a slab cache.
///
/// # Invariants
///
/// The object is initialized, in memory of the cache of `T`, and has no other owner.
#[repr(transparent)]
pub(crate) struct SlabBox<T: Cached>(NonNull<T>);

// SAFETY: The box owns its object as a `KBox` does, and caches serve every CPU.
unsafe impl<T: Cached + Send> Send for SlabBox<T> {}
// SAFETY: A shared reference to the box gives a shared reference to the object.
unsafe impl<T: Cached + Sync> Sync for SlabBox<T> {}

impl<T: Cached> SlabBox<T> {
    /// Allocates and initializes an object. May sleep.
    #[inline(always)]
    pub(crate) fn new<E>(init: impl PinInit<T, E>) -> Result<Self>
    where
        Error: From<E>,
    {
        let cache = T::cache().raw.load(Acquire);
        if cache.is_null() {
            return Err(ENOMEM);
        }
        // SAFETY: The cache exists while objects are allocated, by the contract of
        // `CacheGuard::new`.
        let raw = unsafe { bindings::kmem_cache_alloc_noprof(cache, bindings::GFP_KERNEL) };
        let mut slot = NonNull::new(raw.cast::<MaybeUninit<T>>()).ok_or(ENOMEM)?;
        // SAFETY: The cache gives memory with the size and alignment of `T`, which nothing else
        // uses and which does not move until it is freed. The reference ends with this function.
        match unsafe { slot.as_mut() }.write_pin_init(init) {
            // INVARIANT: The object was initialized, in memory of the cache.
            Ok(_) => Ok(Self(slot.cast())),
            Err(error) => {
                // SAFETY: The memory comes from this cache; a failed initializer leaves nothing in
                // it.
                unsafe { bindings::kmem_cache_free(cache, raw) };
                Err(error.into())
            }
        }
    }

    /// Gives the object away as a pointer, to be taken back with [`SlabBox::from_raw`].
    #[inline]
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
    #[inline]
    pub(crate) unsafe fn from_raw(object: NonNull<T>) -> Self {
        // INVARIANT: The object is as it was in the box that it comes from.
        Self(object)
    }
}

impl<T: Cached> Deref for SlabBox<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: The box owns the object, by the type's invariant.
        unsafe { self.0.as_ref() }
    }
}

impl<T: Cached + Unpin> DerefMut for SlabBox<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: The box owns the object, by the type's invariant.
        unsafe { self.0.as_mut() }
    }
}

impl<T: Cached> Drop for SlabBox<T> {
    /// Drops the object and gives its memory back to the cache. Does not sleep unless `T`'s drop
    /// does.
    #[inline]
    fn drop(&mut self) {
        // SAFETY: The object is initialized, and this is its only owner, by the type's invariant.
        unsafe { ptr::drop_in_place(self.0.as_ptr()) };
        let cache = T::cache().raw.load(Acquire);
        // SAFETY: The memory comes from this cache, which exists while there is an object in it, by
        // the contract of `CacheGuard::new`.
        unsafe { bindings::kmem_cache_free(cache, self.0.as_ptr().cast()) };
    }
}

/// An object together with the number of its owners.
#[pin_data]
pub(crate) struct Counted<T> {
    owners: Atomic<i32>,
    #[pin]
    object: T,
}

/// A type whose objects live in a slab cache, with several owners.
pub(crate) trait CachedShared: Send + Sync + Sized + 'static {
    /// Where the cache of this type is.
    fn cache() -> &'static Cache<Counted<Self>>;
}

impl<T: CachedShared> Cached for Counted<T> {
    fn cache() -> &'static Cache<Self> {
        T::cache()
    }
}

/// One of the owners of an object in a slab cache.
///
/// # Invariants
///
/// The object is there, and `owners` counts this one.
pub(crate) struct SlabArc<T: CachedShared>(NonNull<Counted<T>>);

// SAFETY: The count is atomic, and the object may be used, and dropped, by any task.
unsafe impl<T: CachedShared> Send for SlabArc<T> {}
// SAFETY: A shared reference gives shared references to the object, and further owners.
unsafe impl<T: CachedShared> Sync for SlabArc<T> {}

impl<T: CachedShared> SlabArc<T> {
    /// Allocates and initializes an object. May sleep.
    #[inline]
    pub(crate) fn new<E>(init: impl PinInit<T, E>) -> Result<Self>
    where
        Error: From<E>,
    {
        let object = SlabBox::new::<Error>(try_pin_init!(Counted {
            owners: Atomic::new(1),
            object <- init,
        }? Error))?;
        // INVARIANT: The count begins with this owner.
        Ok(Self(object.into_raw()))
    }
}

impl<T: CachedShared> Clone for SlabArc<T> {
    #[inline]
    fn clone(&self) -> Self {
        // SAFETY: The object is there, by the type's invariant.
        let before = unsafe { &self.0.as_ref().owners }.fetch_add(1, Relaxed);
        // PANIC: Only owners by the thousand million that were forgotten lead here.
        assert!(before > 0, "too many owners");
        // INVARIANT: Counted above.
        Self(self.0)
    }
}

impl<T: CachedShared> Deref for SlabArc<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: The object is there, by the type's invariant.
        unsafe { &self.0.as_ref().object }
    }
}

impl<T: CachedShared> Drop for SlabArc<T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: The object is there, by the type's invariant.
        let before = unsafe { &self.0.as_ref().owners }.fetch_sub(1, Full);
        if before == 1 {
            // SAFETY: This was the last owner; `new` has taken the object out of a box.
            drop(unsafe { SlabBox::from_raw(self.0) });
        }
    }
}
