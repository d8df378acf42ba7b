//! Checks of public keys that a signature library does not do.

/// The `y` coordinates of all points of order 1, 2, 4 and 8, little-endian, without the sign of
/// `x`: the five canonical ones, and the two encodings of 0 and 1 that are not reduced. With either
/// sign these are all 14 encodings, as listed in
/// [Taming the many EdDSAs](https://eprint.iacr.org/2020/1244), table 1.
const SMALL_ORDER: [[u8; 32]; 7] = [
    y(0x00, [0x00; 30], 0x00),
    y(0x01, [0x00; 30], 0x00),
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98,
        0xf0, 0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53,
        0xfc, 0x05,
    ],
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67,
        0x0f, 0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac,
        0x03, 0x7a,
    ],
    y(0xec, [0xff; 30], 0x7f),
    y(0xed, [0xff; 30], 0x7f),
    y(0xee, [0xff; 30], 0x7f),
];

/// Defect of a public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WeakPoint {
    /// Signatures that hold for many texts are easy to make.
    SmallOrder,
    /// The coordinate is not reduced modulo 2^255 - 19: the same key has two encodings.
    NotCanonical,
}

/// Returns the defect of an Ed25519 public key as encoded in RFC 8032, if it has one.
pub(crate) fn weakness(key: &[u8; 32]) -> Option<WeakPoint> {
    let mut y = *key;
    y[31] &= 0x7f;
    if SMALL_ORDER.contains(&y) {
        return Some(WeakPoint::SmallOrder);
    }
    // The prime is 0x7fff…ffed.
    let not_reduced = y[31] == 0x7f && y[1..31].iter().all(|byte| *byte == 0xff) && y[0] >= 0xed;
    not_reduced.then_some(WeakPoint::NotCanonical)
}

const fn y(first: u8, middle: [u8; 30], last: u8) -> [u8; 32] {
    let mut bytes = [middle[0]; 32];
    bytes[0] = first;
    bytes[31] = last;
    bytes
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    fn point(hex: &str) -> [u8; 32] {
        HEXLOWER.decode(hex.as_bytes()).unwrap().try_into().unwrap()
    }

    #[test]
    fn every_small_order_encoding_is_found() {
        let zeros = "00".repeat(30);
        let ones = "ff".repeat(30);
        let mut found = 0;
        for y in [
            format!("00{zeros}00"),
            format!("01{zeros}00"),
            format!("ec{ones}7f"),
            format!("ed{ones}7f"),
            format!("ee{ones}7f"),
            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a".to_owned(),
            "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05".to_owned(),
        ] {
            let mut key = point(&y);
            assert_eq!(weakness(&key), Some(WeakPoint::SmallOrder), "{y}");
            key[31] |= 0x80;
            assert_eq!(weakness(&key), Some(WeakPoint::SmallOrder), "{y} with the sign bit");
            found += 2;
        }
        assert_eq!(found, 14);
    }

    #[test]
    fn unreduced_coordinate_is_not_canonical() {
        for first in 0xef..=0xff {
            let mut key = [0xff; 32];
            key[0] = first;
            assert_eq!(weakness(&key), Some(WeakPoint::NotCanonical));
            key[31] = 0x7f;
            assert_eq!(weakness(&key), Some(WeakPoint::NotCanonical));
        }
        // The largest reduced coordinate but one: -2.
        let mut key = [0xff; 32];
        key[0] = 0xeb;
        assert_eq!(weakness(&key), None);
    }
}
