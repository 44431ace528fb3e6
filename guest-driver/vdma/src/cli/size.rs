/// Parses a byte count: decimal or `0x` hexadecimal, with an optional suffix K, M or G (powers of
/// 1024).
pub(super) fn parse(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 10),
        Some((at, 'm' | 'M')) => (&text[..at], 20),
        Some((at, 'g' | 'G')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let number = match digits.strip_prefix("0x") {
        Some(hexadecimal) => u64::from_str_radix(hexadecimal, 16),
        None => digits.parse(),
    };
    let number =
        number.map_err(|_| format!("'{text}' is not a size such as 4096, 0x1000, 64K or 1M"))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("'{text}' is more than the 2^64 bytes that a device can have"))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn parses_sizes() {
        assert_eq!(parse("0"), Ok(0));
        assert_eq!(parse("0x1000"), Ok(4096));
        assert_eq!(parse("64K"), Ok(65536));
        assert_eq!(parse("3g"), Ok(3 << 30));
    }

    #[test]
    fn refuses_what_is_no_size() {
        for text in [
            "",
            "K",
            "-1",
            "1.5M",
            "4 K",
            "0x",
            "99999999999999999999",
            "17179869184G",
            "µ",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
