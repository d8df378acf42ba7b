#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| ai_agent_fuzz::update::run(data));
