//! `cargo +nightly fuzz run wal fuzz/corpus/wal`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weir::sqlite::fuzz_wal(data));
