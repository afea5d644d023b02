//! `cargo +nightly fuzz run wal_index fuzz/corpus/wal_index`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weir::sqlite::fuzz_wal_index(data));
