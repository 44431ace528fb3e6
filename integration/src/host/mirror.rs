//! The package mirror: by default the one that this machine uses itself.

use std::process::Command;

use anyhow::{Context, Result, bail};

/// Environment variable that overrides the mirror.
pub(crate) const MIRROR_VARIABLE: &str = "VDMA_MIRROR";

/// Returns the mirror to use: `chosen` (from `--mirror` or the environment), or the host's own.
pub(crate) fn find(chosen: Option<&str>) -> Result<String> {
    if let Some(mirror) = chosen {
        return Ok(mirror.trim_end_matches('/').to_owned());
    }
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(LABEL)"])
        .output()
        .context("cannot run apt-get: this needs a Debian host, or --mirror and an apt-get")?;
    match from_index_targets(&String::from_utf8_lossy(&output.stdout)) {
        Some(mirror) => Ok(mirror),
        None => bail!(
            "no Debian mirror in this host's apt configuration (is `apt-get update` due?); \
             name one with --mirror URL or {MIRROR_VARIABLE}"
        ),
    }
}

/// The first target whose origin and label are both "Debian": not security, not a third party.
fn from_index_targets(text: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.strip_suffix(" Debian Debian"))
        .map(|uri| uri.trim_end_matches('/').to_owned())
        .next()
}

#[cfg(test)]
mod tests {
    use super::from_index_targets;

    #[test]
    fn security_and_third_parties_are_passed_over() {
        let text = "https://third.example/apt example third\n\
                    http://mirror.example/debian-security/ Debian Debian-Security\n\
                    http://mirror.example/debian/ Debian Debian\n\
                    http://mirror.example/debian/ Debian Debian\n";
        assert_eq!(
            from_index_targets(text).as_deref(),
            Some("http://mirror.example/debian")
        );
        assert_eq!(from_index_targets(""), None);
    }
}
