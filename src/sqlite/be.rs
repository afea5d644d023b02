//! Big-endian numbers at offsets: nearly every number SQLite stores is one.

/// The number at an offset, which the caller has checked to lie within the bytes.
pub(super) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    let field = bytes.get(at..at + 4).and_then(|field| field.try_into().ok());
    u32::from_be_bytes(field.expect("BUG: a field lies outside its structure"))
}

/// Stores a number at an offset, which the caller has checked to lie within the bytes.
pub(super) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}
