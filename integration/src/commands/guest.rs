//! From options to a guest, and from the end of its command to an exit status.

use guest_agent::{CommandEnd, GuestConfig};

use crate::{
    cli::GuestOptions,
    testbed::{guest::GuestSpec, provide::Wanted},
};

pub(super) fn wanted(options: &GuestOptions) -> Wanted {
    Wanted {
        mirror: options.environment.mirror.clone(),
        refresh: options.environment.refresh,
        kernel: options.environment.kernel.clone(),
        package_sets: vec![options.package.clone()],
        accel: options.environment.accel,
        driver: !options.no_driver && options.devices > 0,
        counting_plugin: false,
    }
}

pub(super) fn guest_spec(options: &GuestOptions) -> GuestSpec {
    GuestSpec {
        name: "guest".to_owned(),
        config: GuestConfig {
            cpus: options.cpus,
            memory_mib: options.memory,
            devices: if options.no_driver {
                0
            } else {
                options.devices
            },
            device_arguments: options.device_arg.clone(),
            packages: options.package.clone(),
            ..GuestConfig::default()
        },
        qemu_arguments: options.qemu_arg.clone(),
        copies: options.copy.clone(),
        verbose: options.verbose,
    }
}

/// Returns the exit status that a shell would have for `end`.
pub(super) fn status_of(end: &CommandEnd) -> u8 {
    match end {
        CommandEnd::Exited(code) => u8::try_from(code & 0xff).unwrap_or(1),
        CommandEnd::Killed(signal) => u8::try_from(128 + signal).unwrap_or(1),
        CommandEnd::NotStarted { missing: true, .. } => 127,
        CommandEnd::NotStarted { missing: false, .. } => 126,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_statuses_are_those_of_a_shell() {
        assert_eq!(status_of(&CommandEnd::Exited(7)), 7);
        assert_eq!(status_of(&CommandEnd::Killed(9)), 137);
        let missing = CommandEnd::NotStarted {
            reason: String::new(),
            missing: true,
        };
        assert_eq!(status_of(&missing), 127);
    }
}
