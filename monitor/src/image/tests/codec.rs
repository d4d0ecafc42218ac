use proptest::prelude::*;

use super::{
    super::codec::{DecodeError, decode, encode},
    contents::tar_of,
    *,
};

#[test]
fn only_the_file_of_this_layer_and_version_is_read() {
    let layer = layer(
        Tar::default()
            .file("a", "x")
            .symlink("b", "a")
            .entry(b'3', "c", "", b"")
            .hardlink("d", "lower"),
    )
    .unwrap();
    let bytes = encode(&layer);
    let id = layer.diff_id();
    assert_eq!(decode(&bytes, &id).as_ref(), Ok(&layer));
    assert_eq!(
        decode(&bytes, &digest_of(b"")),
        Err(DecodeError::OtherLayer(id))
    );
    let mut other = bytes.clone();
    other[8] = 3;
    assert_eq!(decode(&other, &id), Err(DecodeError::Version(3)));
    other[0] = 0;
    assert_eq!(decode(&other, &id), Err(DecodeError::Magic));
    let longer = sealed(&[&bytes[44..], b"x"].concat());
    assert_eq!(decode(&longer, &id), Err(DecodeError::Trailing(1)));
    // A count that promises more than there is.
    let mut body = bytes[44..].to_vec();
    body[32..36].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(decode(&sealed(&body), &id), Err(DecodeError::Truncated));
}

/// A body with the checksum that it should have.
fn sealed(body: &[u8]) -> Vec<u8> {
    [
        b"monlayer".as_slice(),
        &2_u32.to_le_bytes(),
        &Sha256::of(body).0,
        body,
    ]
    .concat()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_file_is_no_layer(tar in tar_of(), byte in any::<u8>()) {
        let Ok(layer) = layer(tar) else { return Ok(()) };
        let (bytes, id) = (encode(&layer), layer.diff_id());
        prop_assert!(decode(&bytes, &id).is_ok_and(|seen| seen == layer));
        for index in 0..bytes.len() {
            prop_assert!(decode(&bytes[..index], &id).is_err());
            let mut damaged = bytes.clone();
            damaged[index] ^= byte.max(1);
            prop_assert!(decode(&damaged, &id).is_err());
            // Even with a checksum made to fit, what is read is what is written.
            if let Some(body) = damaged.get(44..).filter(|_| index >= 44) {
                let damaged = sealed(body);
                if let Ok(other) = decode(&damaged, &id) {
                    prop_assert_eq!(encode(&other), damaged);
                }
                prop_assert!(decode(&sealed(&bytes[44..index]), &id).is_err());
            }
        }
    }

    #[test]
    fn no_bytes_make_it_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let id = digest_of(b"");
        let _ = decode(&sealed(&[&id.0.0, [2, 0, 0, 0].as_slice(), &body].concat()), &id);
    }
}
