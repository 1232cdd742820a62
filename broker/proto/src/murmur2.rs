//! The hash and the partition that Kafka's Java client gives a record key, so that records written here and
//! by cloud applications with the same key meet in one partition.

/// The partition, `0..partitions`, that Kafka's default partitioner chooses for `key`. Zero partitions: 0.
pub fn partition(key: &[u8], partitions: u32) -> u32 {
    // Kafka clears the sign bit instead of taking the absolute value.
    (murmur2(key) & 0x7fff_ffff).checked_rem(partitions).unwrap_or(0)
}

/// MurmurHash2, 32 bits, with Kafka's seed. Java shows the same bits as a signed number.
pub fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;

    // Java's array lengths are 32 bits; longer input can't come from there.
    let mut hash = SEED ^ data.len() as u32;
    let (words, tail) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !tail.is_empty() {
        let last = tail.iter().rev().fold(0u32, |acc, &byte| acc << 8 | u32::from(byte));
        hash = (hash ^ last).wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ hash >> 15
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_java_client() {
        for (key, expected) in [
            ("21", -973932308),
            ("foobar", -790332482),
            ("a-little-bit-long-string", -985981536),
            ("a-little-bit-longer-string", -1486304829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
            ("abc", 479470107),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, expected, "{key}");
        }
    }

    #[test]
    fn a_negative_hash_still_gives_a_partition_that_exists() {
        for (key, partitions, expected) in [
            ("foobar", 3, (-790332482i32 & i32::MAX) as u32 % 3),
            ("abc", 3, 479470107 % 3),
            ("abc", 1, 0),
            ("abc", 0, 0),
        ] {
            assert_eq!(partition(key.as_bytes(), partitions), expected, "{key} over {partitions}");
        }
    }
}
