//! The C header as text.

use std::fmt::Write;

use crate::source::{Constant, Source};

#[derive(Clone, Copy)]
pub struct Value {
    pub number: u64,
    pub hexadecimal: bool,
}

const HEAD: &str = "\
/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * The vdma protocol for programs in C: the DMA device's requests and configuration, and the calls
 * of /dev/vdmaN. Generated from protocol/src/wire by protocol/tests/c_header; do not edit.
 */
#ifndef VIRTIO_DMA_H
#define VIRTIO_DMA_H

#include <linux/types.h>
";

pub fn c_constant(name: &str) -> String {
    format!("VDMA_{name}")
}

pub fn c_struct(name: &str) -> String {
    let mut snake = String::from("vdma");
    for c in name.chars() {
        if c.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

fn c_type(rust: &str) -> &'static str {
    match rust {
        "Le16" => "__le16",
        "Le32" => "__le32",
        "Le64" => "__le64",
        "u8" => "__u8",
        "u16" => "__u16",
        "u32" => "__u32",
        "u64" => "__u64",
        "i32" => "__s32",
        "i64" => "__s64",
        other => panic!("{other} has no C equivalent here"),
    }
}

pub fn render(source: &Source, values: &[(&str, Value)]) -> String {
    let mut text = HEAD.to_owned();
    for constant in &source.constants {
        let value = values
            .iter()
            .find(|(name, _)| *name == constant.name)
            .unwrap_or_else(|| panic!("{} is missing in values()", constant.name))
            .1;
        render_constant(&mut text, constant, value);
    }
    for (name, _) in values {
        let known = source
            .constants
            .iter()
            .any(|constant| constant.name == *name);
        assert!(known, "{name} is in values() but not in the sources");
    }
    for item in &source.structs {
        text.push('\n');
        comment(&mut text, "", &item.docs);
        writeln!(text, "struct {} {{", c_struct(&item.name)).unwrap();
        for field in &item.fields {
            comment(&mut text, "\t", &field.docs);
            let count = field
                .count
                .as_ref()
                .map_or(String::new(), |count| format!("[{count}]"));
            writeln!(text, "\t{} {}{count};", c_type(&field.kind), field.name).unwrap();
        }
        text.push_str("};\n");
    }
    text.push_str("\n#endif /* VIRTIO_DMA_H */\n");
    text
}

fn render_constant(text: &mut String, constant: &Constant, value: Value) {
    text.push('\n');
    comment(text, "", &constant.docs);
    let name = c_constant(&constant.name);
    let number = value.number;
    if value.hexadecimal {
        writeln!(text, "#define {name} {number:#x}U").unwrap();
    } else {
        writeln!(text, "#define {name} {number}U").unwrap();
    }
}

/// Writes documentation as a C comment, with links between Rust items as plain text.
fn comment(text: &mut String, indent: &str, docs: &[String]) {
    let lines: Vec<String> = docs
        .iter()
        .map(|line| {
            line.replace(['`', '[', ']'], "")
                .replace("super::", "")
                .replace("::", ".")
        })
        .collect();
    match lines.as_slice() {
        [] => {}
        [line] => writeln!(text, "{indent}/* {line} */").unwrap(),
        lines => {
            writeln!(text, "{indent}/*").unwrap();
            for line in lines {
                writeln!(text, "{}", format!("{indent} * {line}").trim_end()).unwrap();
            }
            writeln!(text, "{indent} */").unwrap();
        }
    }
}
