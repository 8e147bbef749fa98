#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kohakuriver_tunnel_fuzz::resume(data));
