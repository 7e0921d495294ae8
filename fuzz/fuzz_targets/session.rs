#![no_main]

#[path = "../nbd_checks.rs"]
#[allow(dead_code, reason = "each target has one check")]
mod nbd_checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nbd_checks::session(bytes));
