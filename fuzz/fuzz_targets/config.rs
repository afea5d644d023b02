//! `cargo +nightly fuzz run config fuzz/corpus/config`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weir::config::fuzz_config(data));
