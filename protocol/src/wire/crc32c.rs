// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Putting CRC32C checksums together: of a whole, from those of its parts.
//!
//! A checksum is a remainder of polynomials over GF(2). Appending a zero byte multiplies by x^8, so
//! appending many multiplies by a power of x, found by squaring.

/// The polynomial of CRC32C, x^32 left out, lowest power in the highest bit (RFC 3720, section
/// 12.1).
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// The polynomial 1.
const ONE: u32 = 1 << 31;

/// x^8: what a byte shifts by.
const BYTE: u32 = 1 << 23;

/// The product of two remainders.
const fn multiply(a: u32, b: u32) -> u32 {
    let mut product = 0;
    let mut power = b;
    let mut bit = 32;
    while bit > 0 {
        bit -= 1;
        if a >> bit & 1 != 0 {
            product ^= power;
        }
        power = if power & 1 != 0 {
            power >> 1 ^ POLYNOMIAL
        } else {
            power >> 1
        };
    }
    product
}

/// What the bytes of `crc` contribute to the checksum of a text in which `bytes` further bytes
/// follow them: the checksum of the whole is the exclusive or of the contributions of its parts.
#[must_use]
pub const fn shift(crc: u32, bytes: u64) -> u32 {
    let mut factor = ONE;
    let mut square = BYTE;
    let mut left = bytes;
    while left > 0 {
        if left & 1 != 0 {
            factor = multiply(factor, square);
        }
        square = multiply(square, square);
        left >>= 1;
    }
    multiply(factor, crc)
}
