#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mezite_fuzz::look("asciicast", bytes);
});
