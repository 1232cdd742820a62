//! The fuzzer's inputs for [`mqtt_proto_fuzz::trie`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mqtt_proto_fuzz::trie(data));
