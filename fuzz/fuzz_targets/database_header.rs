//! `cargo +nightly fuzz run database_header fuzz/corpus/database_header`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weir::sqlite::fuzz_database_header(data));
