//! `cargo +nightly fuzz run ltx_decode fuzz/corpus/ltx_decode tests/data/ltx`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weir::ltx::fuzz_ltx_decode(data));
