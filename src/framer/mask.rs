//! Masking (RFC 6455 5.3): every payload byte is XORed with one of the key's four, in turn.

/// XORs `payload` with `key`, whose first byte belongs to the first byte of `payload`, and returns
/// the key turned so that it belongs to the byte after `payload`.
pub fn unmask(payload: &mut [u8], key: [u8; 4]) -> [u8; 4] {
    let [a, b, c, d] = key;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut words = payload.chunks_exact_mut(8);
    for word in &mut words {
        let bytes: [u8; 8] = (&*word).try_into().expect("chunks_exact_mut yields eight bytes");
        word.copy_from_slice(&(u64::from_ne_bytes(bytes) ^ wide).to_ne_bytes());
    }
    for (byte, key_byte) in words.into_remainder().iter_mut().zip(key.iter().cycle()) {
        *byte ^= key_byte;
    }
    let mut turned = key;
    turned.rotate_left(payload.len() % 4);
    turned
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn unmask_naive(payload: &mut [u8], key: [u8; 4]) {
        for (index, byte) in payload.iter_mut().enumerate() {
            *byte ^= key[index % 4];
        }
    }

    #[test]
    fn every_alignment_and_length_equals_the_naive_twin() {
        let source: Vec<u8> = (0..96u8).map(|byte| byte.wrapping_mul(37)).collect();
        for start in 0..16 {
            for end in start..source.len() {
                let (mut fast, mut naive) = (source.clone(), source.clone());
                unmask(&mut fast[start..end], [1, 2, 3, 4]);
                unmask_naive(&mut naive[start..end], [1, 2, 3, 4]);
                assert_eq!(fast, naive, "{start}..{end}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_payload_in_two_parts_equals_the_whole(
            payload in proptest::collection::vec(any::<u8>(), 0..200),
            key in any::<[u8; 4]>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let cut = cut.index(payload.len() + 1);
            let (mut fast, mut naive) = (payload.clone(), payload);
            let (left, right) = fast.split_at_mut(cut);
            let turned = unmask(left, key);
            unmask(right, turned);
            unmask_naive(&mut naive, key);
            prop_assert_eq!(fast, naive);
        }
    }
}
