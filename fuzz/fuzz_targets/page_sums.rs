//! `cargo +nightly fuzz run page_sums fuzz/corpus/page_sums`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weir::log::fuzz_page_sums(data));
