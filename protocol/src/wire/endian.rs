// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Little-endian integers, the byte order of every virtio 1.x structure (virtio 1.2, section 1.4).

macro_rules! little_endian {
    ($name:ident, $native:ty) => {
        #[doc = concat!("A `", stringify!($native), "` stored little-endian on every machine.")]
        #[repr(transparent)]
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
        pub struct $name($native);

        impl $name {
            /// Stores `value` in little-endian order.
            #[must_use]
            pub const fn new(value: $native) -> Self {
                Self(value.to_le())
            }

            /// The value in the byte order of this machine.
            #[must_use]
            pub const fn get(self) -> $native {
                <$native>::from_le(self.0)
            }
        }

        impl From<$native> for $name {
            fn from(value: $native) -> Self {
                Self::new(value)
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::Debug::fmt(&self.get(), f)
            }
        }
    };
}

little_endian!(Le16, u16);
little_endian!(Le32, u32);
little_endian!(Le64, u64);

/// The eight bytes at `at`, which must be inside of `bytes`.
pub(super) fn le64_at<const N: usize>(bytes: &[u8; N], at: usize) -> Le64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    Le64::new(u64::from_le_bytes(field))
}
