//! `include/virtio_dma.h`: rendered from the Rust sources, compared with the file in the tree, and
//! compiled, and its numbers compared.
//!
//! `UPDATE_HEADER=1 cargo test -p vdma-protocol --test c_header` rewrites the file.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod render;
mod source;

use std::{fmt::Write, path::Path, process::Command};

use render::{Value, render};

fn header_path() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("include/virtio_dma.h")
}

#[test]
fn the_header_is_up_to_date() {
    let wanted = render(&source::read(), &values());
    if std::env::var_os("UPDATE_HEADER").is_some() {
        std::fs::write(header_path(), &wanted).unwrap();
    }
    let found = std::fs::read_to_string(header_path()).unwrap_or_default();
    assert!(
        found == wanted,
        "include/virtio_dma.h is out of date; run this test with UPDATE_HEADER=1"
    );
}

/// Compiles a C program that prints every value, size and offset of the header, and compares with
/// what the Rust compiler says.
#[test]
fn a_c_compiler_reads_the_same_numbers() {
    let source = source::read();
    let values = values();
    let mut program = String::from(
        "#include <stdio.h>\n#include <stddef.h>\n#include \"virtio_dma.h\"\nint main(void) {\n",
    );
    let mut expected = String::new();
    for (name, value) in &values {
        let c_name = render::c_constant(name);
        writeln!(
            program,
            "printf(\"{c_name} %llu\\n\", (unsigned long long){c_name});"
        )
        .unwrap();
        writeln!(expected, "{c_name} {}", value.number).unwrap();
    }
    for layout in layouts() {
        let c_name = render::c_struct(layout.name);
        writeln!(
            program,
            "printf(\"{c_name} %zu\\n\", sizeof(struct {c_name}));"
        )
        .unwrap();
        writeln!(expected, "{c_name} {}", layout.size).unwrap();
        let fields = &source
            .structs
            .iter()
            .find(|s| s.name == layout.name)
            .unwrap()
            .fields;
        assert_eq!(
            fields.len(),
            layout.offsets.len(),
            "{}: a field is not checked",
            layout.name
        );
        for (field, (name, offset)) in fields.iter().zip(layout.offsets) {
            assert_eq!(field.name, *name);
            let item = format!("struct {c_name}, {name}");
            writeln!(
                program,
                "printf(\"{c_name}.{name} %zu\\n\", offsetof({item}));"
            )
            .unwrap();
            writeln!(expected, "{c_name}.{name} {offset}").unwrap();
        }
    }
    program.push_str("return 0; }\n");

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("check.c");
    let binary = directory.path().join("check");
    std::fs::write(&file, program).unwrap();
    let compiled = Command::new("cc")
        .args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"])
        .arg("-I")
        .arg(header_path().parent().unwrap())
        .arg(&file)
        .arg("-o")
        .arg(&binary)
        .output()
        .expect("a C compiler: install gcc");
    assert!(
        compiled.status.success(),
        "{}",
        String::from_utf8_lossy(&compiled.stderr)
    );
    let output = Command::new(&binary).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
}

#[test]
fn the_examples_in_c_compile() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-driver/examples");
    let mut count = 0;
    for entry in std::fs::read_dir(&examples).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "c") {
            count += 1;
            let output = Command::new("cc")
                .args(["-fsyntax-only", "-Wall", "-Werror", "-I"])
                .arg(header_path().parent().unwrap())
                .arg(&path)
                .output()
                .expect("a C compiler: install gcc");
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    assert!(count > 0, "no example in {}", examples.display());
}

#[test]
fn a_cpp_compiler_accepts_the_header() {
    let output = Command::new("c++")
        .args(["-x", "c++", "-fsyntax-only", "-Wall", "-Werror"])
        .arg(header_path())
        .output();
    match output {
        Ok(output) => assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(e) => println!("not checked: no C++ compiler here ({e})"),
    }
}

/// Every public constant, with its value. What is missing here fails the rendering.
fn values() -> Vec<(&'static str, Value)> {
    use vdma_protocol as v;
    macro_rules! values {
        ($($name:ident),* $(,)?) => {
            vec![$((stringify!($name), Value { number: u64::from(v::$name), hexadecimal: false })),*]
        };
    }
    let mut values = values![
        DEVICE_ID,
        PCI_DEVICE_ID,
        SHMEM_ID_DEVICE_MEMORY,
        FEATURE_BAR,
        CONFIG_MAGIC,
        CONFIG_VERSION,
        STATE_BAR_MAPPED,
        STATE_PERSISTENT,
        STATE_SHARED,
        IOCTL_TYPE,
        IOCTL_INFO,
        IOCTL_FILE_STATISTICS,
        IOCTL_DEVICE_STATISTICS,
        IOCTL_MAP_MODE,
        IOCTL_CACHE_MODE,
        IOCTL_RUN,
        IOCTL_RUN_BATCH,
        IOCTL_REGISTER_BUFFER,
        IOCTL_ALLOCATE_BUFFER,
        IOCTL_IMPORT_BUFFER,
        IOCTL_RELEASE_BUFFER,
        IOCTL_TRACE,
        IOCTL_EXPLAIN,
        IOCTL_EVENTFD,
        URING_RUN,
        NO_FILE,
        MAP_EAGER,
        MAP_LAZY,
        CACHE_WRITE_BACK,
        CACHE_WRITE_COMBINING,
        CACHE_UNCACHED,
        COMMAND_OUTGOING_BUFFER,
        COMMAND_INCOMING_BUFFER,
        BATCH_MAX,
        PAGE_HUGE,
        PAGE_ANONYMOUS,
        PAGE_BOUNCED,
    ];
    for (name, value) in &mut values {
        value.hexadecimal = ["PCI_DEVICE_ID", "CONFIG_MAGIC"].contains(name)
            || name.starts_with("IOCTL")
            || ["URING_RUN", "NO_FILE"].contains(name);
    }
    for operation in v::Operation::ALL {
        let number = u64::from(operation.code());
        values.push((
            source::OPERATIONS[operation as usize],
            Value {
                number,
                hexadecimal: false,
            },
        ));
    }
    macro_rules! statuses {
        ($($name:ident),* $(,)?) => {
            $(values.push((
                concat!("STATUS_", stringify!($name)),
                Value { number: u64::from(v::Status::$name.0), hexadecimal: false },
            ));)*
        };
    }
    statuses![
        OK,
        UNSUPPORTED,
        BAD_FLAGS,
        BAD_RANGE,
        BAD_LENGTH,
        BAD_ADDRESS,
        IO_ERROR,
        BAD_REQUEST,
        UNWRITTEN,
    ];
    values
}

struct Layout {
    name: &'static str,
    size: usize,
    offsets: &'static [(&'static str, usize)],
}

fn layouts() -> Vec<Layout> {
    use std::mem::{offset_of, size_of};
    macro_rules! layout {
        ($name:ident { $($field:ident),* $(,)? }) => {
            Layout {
                name: stringify!($name),
                size: size_of::<vdma_protocol::$name>(),
                offsets: &[$((stringify!($field), offset_of!(vdma_protocol::$name, $field))),*],
            }
        };
    }
    macro_rules! statistics {
        ($($(#[$doc:meta])* $field:ident,)*) => {
            layout!(Statistics { $($field),* })
        };
    }
    vec![
        layout!(Config {
            magic,
            version,
            memory_size,
            operations,
            num_queues,
            reserved0,
            max_segments,
            max_transfer,
            state,
            reserved1,
        }),
        layout!(DeviceInfo {
            features,
            memory_size,
            operations,
            bar_address,
            bar_size,
            num_queues,
            queue_size,
            max_segments,
            max_transfer,
            state,
            dma_bits,
        }),
        vdma_protocol::with_statistics!(statistics),
        layout!(Choice { value, reserved }),
        layout!(Command {
            operation,
            flags,
            reserved,
            offset,
            length,
            argument,
            outgoing,
            incoming,
            outgoing_buffer,
            incoming_buffer,
            result,
            value,
        }),
        layout!(Batch {
            commands,
            count,
            done,
        }),
        layout!(Registration {
            address,
            length,
            id,
            reserved,
        }),
        layout!(Allocation {
            length,
            id,
            file,
            runs,
            reserved,
        }),
        layout!(Trace {
            length,
            file,
            reserved,
        }),
        layout!(TraceHeader {
            head,
            capacity,
            records_offset,
            record_size,
            reserved,
        }),
        layout!(TraceRecord {
            stamp,
            time,
            latency,
            offset,
            length,
            operation,
            queue,
            result,
            pages,
            segments,
            transferred,
        }),
        layout!(Explanation {
            address,
            length,
            offset,
            pages,
            capacity,
            count,
        }),
        layout!(ExplainedPage {
            address,
            kernel_address,
            physical_address,
            bus_address,
            offset,
            length,
            entry,
            flags,
            reserved,
        }),
        layout!(RequestHeader {
            operation,
            flags,
            reserved,
            offset,
            length,
            argument
        }),
        layout!(Response {
            status,
            reserved,
            transferred,
            value
        }),
    ]
}
