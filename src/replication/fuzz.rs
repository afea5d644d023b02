//! What must hold for any bytes that a peer sends; fuzz targets and property tests call it.

use super::limits::{FILTER_BYTES_MAX, FILTERS_MAX};
use super::view::Filter;
use crate::types::DbName;

pub use super::convert::fuzz::fuzz_message;

/// Globs, one a line, and a last line that is a name.
///
/// # Panics
/// If two filters of the same globs differ: a bug.
pub fn fuzz_filter(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.lines().map(str::to_owned).collect::<Vec<_>>();
    let name = lines.pop().unwrap_or_default();
    lines.retain(|glob| glob.len() <= FILTER_BYTES_MAX);
    lines.truncate(FILTERS_MAX);
    let (Ok(filter), Ok(name)) = (Filter::new(&lines), DbName::new(name.as_bytes())) else {
        return;
    };
    let each = lines.iter().map(|glob| Filter::new(std::slice::from_ref(glob)));
    let one = each.flatten().any(|filter| filter.wants(&name));
    assert_eq!(filter.wants(&name), one || lines.is_empty(), "BUG: {lines:?} and {name}");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn filters(data in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..100),
            "[a-c*?\\[\\]{},/!\\\\\n.-]{0,60}".prop_map(String::into_bytes),
        ]) {
            fuzz_filter(&data);
        }
    }

    // Alternatives within alternatives are read by recursion; a peer may nest them as deep as a glob is long.
    #[test]
    fn deep_globs_do_not_overflow_the_stack() {
        for glob in ["{".repeat(FILTER_BYTES_MAX / 2), "[".repeat(FILTER_BYTES_MAX)] {
            let closed = format!("{glob}a{}", "}".repeat(glob.len()));
            fuzz_filter(
                format!("{}\nname", &closed[..closed.len().min(FILTER_BYTES_MAX)]).as_bytes(),
            );
            fuzz_filter(format!("{glob}\nname").as_bytes());
        }
    }
}
