//! What must hold for any bytes at all; a fuzz target and the property test below call it.

use std::path::Component;

use super::{DbId, DbName, NodeId, Pos};

/// Names, positions and identities that come as text.
///
/// # Panics
/// If a name leaves the mount, or a text is not what it was read as: a bug.
pub fn fuzz_name(data: &[u8]) {
    if let Ok(name) = DbName::new(data) {
        assert_eq!(name.as_bytes(), data);
        assert!(name.as_path().components().all(|part| matches!(part, Component::Normal(_))));
        assert!(!name.to_string().chars().any(char::is_control), "BUG: {name} steers a terminal");
        if let Some(longer) = name.with_suffix("-journal") {
            assert_eq!(longer.as_path().parent(), name.as_path().parent());
        }
    }
    let text = String::from_utf8_lossy(data);
    if let Ok(pos) = text.parse::<Pos>() {
        assert!(pos == Pos::ZERO || pos.to_string().eq_ignore_ascii_case(&text));
        assert!(pos.next_txid().get() > pos.txid_raw());
    }
    if let Ok(id) = text.parse::<DbId>() {
        assert!(id.to_string().eq_ignore_ascii_case(&text), "BUG: {id} is another text");
        assert_eq!(text.parse::<NodeId>().map(NodeId::get), Ok(id.get()));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn names_and_positions(
            data in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..300),
                "[a./-]{0,20}|[0-9a-fA-F+]{16}(/[0-9a-fA-F+]{16})?".prop_map(String::into_bytes),
            ],
        ) {
            fuzz_name(&data);
        }
    }
}
