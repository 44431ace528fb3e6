//! The man page, the shell completions and the descriptions for systemd and QEMU.
//!
//! `UPDATE_PACKAGING=1 cargo test -p vhost-device-dma --test packaging` rewrites the generated
//! files.
#![allow(clippy::unwrap_used)]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use clap::CommandFactory;
use clap_complete::Shell;
use vhost_device_dma::cli::Args;

fn packaging(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("packaging")
        .join(name)
}

fn check(name: &str, wanted: &[u8]) {
    let path = packaging(name);
    if std::env::var_os("UPDATE_PACKAGING").is_some() {
        std::fs::write(&path, wanted).unwrap();
    }
    let found = std::fs::read(&path).unwrap_or_default();
    assert!(
        found == wanted,
        "{} is out of date; run this test with UPDATE_PACKAGING=1",
        path.display()
    );
}

#[test]
fn the_man_page_is_up_to_date() {
    let mut page = Vec::new();
    clap_mangen::Man::new(Args::command())
        .render(&mut page)
        .unwrap();
    check("vhost-device-dma.1", &page);
    let text = String::from_utf8(page).unwrap();
    for argument in Args::command().get_arguments() {
        let name = argument.get_long().unwrap().replace('-', "\\-");
        assert!(text.contains(&name), "{name} is missing");
    }
}

#[test]
fn completions_are_up_to_date() {
    for (shell, name) in [
        (Shell::Bash, "vhost-device-dma.bash"),
        (Shell::Zsh, "_vhost-device-dma"),
        (Shell::Fish, "vhost-device-dma.fish"),
    ] {
        let mut text = Vec::new();
        let mut command = Args::command();
        clap_complete::generate(shell, &mut command, "vhost-device-dma", &mut text);
        check(&format!("completions/{name}"), &text);
    }
}

#[test]
fn capabilities_match_the_qemu_description() {
    let output = Command::new(env!("CARGO_BIN_EXE_vhost-device-dma"))
        .arg("--print-capabilities")
        .output()
        .unwrap();
    assert!(output.status.success());
    let printed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let file = std::fs::read(packaging("50-vhost-device-dma.json")).unwrap();
    let described: serde_json::Value = serde_json::from_slice(&file).unwrap();
    assert_eq!(printed["type"], described["type"]);
    for field in ["description", "binary"] {
        assert!(described[field].is_string(), "{field}");
    }
}

#[test]
fn systemd_accepts_the_units() {
    let verify = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .args(["vhost-device-dma.service", "vhost-device-dma.socket"].map(packaging))
        .output();
    let Ok(output) = verify else {
        println!("not checked: systemd-analyze is not installed");
        return;
    };
    let text = String::from_utf8_lossy(&output.stderr);
    // Where the backend is not installed, systemd complains about that, which is fine.
    let complaints: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("vhost-device-dma") && !line.contains("is not executable"))
        .collect();
    assert!(complaints.is_empty(), "{text}");
}

/// `--hugepages` reads the size of huge pages from `/proc/meminfo`, which `ProcSubset=pid` hides.
#[test]
fn the_unit_does_not_hide_what_options_need() {
    let unit = std::fs::read_to_string(packaging("vhost-device-dma.service")).unwrap();
    assert!(!unit.lines().any(|line| line == "ProcSubset=pid"), "{unit}");
}
