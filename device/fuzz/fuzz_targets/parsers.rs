//! Values on the command line: sizes and faults.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vdma_protocol::{Operation, RequestHeader};
use vhost_device_dma::{
    fault::{FaultSpec, Injector},
    size::{format_size, parse_size},
};

fuzz_target!(|text: &str| {
    if let Ok(bytes) = parse_size(text) {
        assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
    }
    if let Ok(spec) = text.parse::<FaultSpec>() {
        if let Some(mut injector) = Injector::new(&[spec], 0) {
            for (operation, offset) in Operation::ALL
                .into_iter()
                .zip([0, 1 << 20, u64::MAX].into_iter().cycle())
            {
                injector.plan(&RequestHeader::new(operation, offset, 4096, offset), |_| {});
            }
        }
    }
});
