//! Byte counts on the command line: a number with an optional suffix.

use thiserror::Error;

/// Why a text is not a byte count.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SizeError {
    /// Something other than digits followed by at most one known suffix.
    #[error("'{0}' is not a size; write digits and an optional K, M, G or T, as in 64M")]
    Syntax(String),
    /// More than 2^64 - 1 bytes.
    #[error("size '{0}' does not fit in 64 bits; choose a smaller one")]
    TooLarge(String),
}

/// Parses a byte count such as `4096`, `64M` or `2G`; suffixes are powers of 1024, in either case.
///
/// # Errors
///
/// The text has another form, or the value exceeds `u64::MAX`.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let (digits, shift) = match text.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (&text[..at], 10),
        Some((at, 'm' | 'M')) => (&text[..at], 20),
        Some((at, 'g' | 'G')) => (&text[..at], 30),
        Some((at, 't' | 'T')) => (&text[..at], 40),
        _ => (text, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(SizeError::Syntax(text.to_owned()));
    }
    digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(|| SizeError::TooLarge(text.to_owned()))
}

/// Formats a byte count with the largest suffix that divides it.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    for (shift, suffix) in [(40, 'T'), (30, 'G'), (20, 'M'), (10, 'K')] {
        if bytes != 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{suffix}", bytes >> shift);
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_powers_of_1024() {
        assert_eq!(parse_size("0"), Ok(0));
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("3k"), Ok(3072));
        assert_eq!(parse_size("64M"), Ok(64 << 20));
        assert_eq!(parse_size("2G"), Ok(2 << 30));
        assert_eq!(parse_size("1T"), Ok(1 << 40));
    }

    #[test]
    fn other_forms_are_rejected() {
        for text in [
            "", "M", "-1", "+1", "1.5G", "1KB", "0x10", " 1", "1 ", "½", "1é",
        ] {
            assert_eq!(parse_size(text), Err(SizeError::Syntax(text.to_owned())));
        }
        for text in ["18446744073709551616", "16777216T", "99999999999999999999G"] {
            assert_eq!(parse_size(text), Err(SizeError::TooLarge(text.to_owned())));
        }
    }

    #[test]
    fn formatting_round_trips() {
        for bytes in [
            0,
            1,
            1023,
            1024,
            4096,
            64 << 20,
            3 << 30,
            (1 << 40) + 1,
            u64::MAX,
        ] {
            assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }
    }
}
