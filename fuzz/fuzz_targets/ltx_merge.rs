//! `cargo +nightly fuzz run ltx_merge fuzz/corpus/ltx_merge`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weir::ltx::fuzz_ltx_merge(data));
