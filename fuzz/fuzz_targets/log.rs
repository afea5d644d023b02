//! `cargo +nightly fuzz run log fuzz/corpus/log`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weir::log::fuzz_log(data));
