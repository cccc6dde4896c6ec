//! Bits in a block, the lowest of a byte first.

/// Whether bit `bit` is set; past the end it is.
pub fn test(map: &[u8], bit: u32) -> bool {
    map.get(bit as usize / 8).is_none_or(|byte| byte & 1 << (bit % 8) != 0)
}

/// Sets a bit.
pub fn set(map: &mut [u8], bit: u32) {
    if let Some(byte) = map.get_mut(bit as usize / 8) {
        *byte |= 1 << (bit % 8);
    }
}

/// Clears a bit; whether it was set.
pub fn clear(map: &mut [u8], bit: u32) -> bool {
    let Some(byte) = map.get_mut(bit as usize / 8) else { return false };
    let was = *byte & 1 << (bit % 8) != 0;
    *byte &= !(1 << (bit % 8));
    was
}

/// The first clear bit in `from..end`.
pub fn find_zero(map: &[u8], from: u32, end: u32) -> Option<u32> {
    let mut bit = from;
    while bit < end {
        if bit.is_multiple_of(8) && map.get(bit as usize / 8) == Some(&0xff) {
            bit += 8;
        } else if test(map, bit) {
            bit += 1;
        } else {
            return Some(bit);
        }
    }
    None
}

/// The first bit of a byte of clear bits within `from..end`.
pub fn find_zero_byte(map: &[u8], from: u32, end: u32) -> Option<u32> {
    (from.div_ceil(8)..end / 8).find(|byte| map.get(*byte as usize) == Some(&0)).map(|byte| byte * 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_clear_bit_is_found_and_none_past_the_end() {
        let map = [0xff, 0xfb, 0xff, 0];
        assert_eq!(find_zero(&map, 0, 32), Some(10));
        assert_eq!(find_zero(&map, 11, 32), Some(24));
        assert_eq!(find_zero(&map, 11, 24), None);
        assert_eq!(find_zero(&map, 32, 64), None);
    }

    #[test]
    fn a_byte_of_clear_bits_lies_wholly_within_the_range() {
        let map = [0, 0xff, 0, 0];
        assert_eq!(find_zero_byte(&map, 0, 32), Some(0));
        assert_eq!(find_zero_byte(&map, 1, 32), Some(16));
        assert_eq!(find_zero_byte(&map, 17, 32), Some(24));
        assert_eq!(find_zero_byte(&map, 17, 31), None);
    }

    #[test]
    fn clearing_tells_whether_the_bit_was_set() {
        let mut map = [0; 2];
        set(&mut map, 9);
        assert_eq!(map, [0, 2]);
        assert!(clear(&mut map, 9));
        assert!(!clear(&mut map, 9));
        assert!(!clear(&mut map, 99));
    }
}
