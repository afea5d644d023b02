//! `cargo +nightly fuzz run message fuzz/corpus/message`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weir::replication::fuzz_message(data));
