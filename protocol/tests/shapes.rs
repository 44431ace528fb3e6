//! The shapes of the operations against the table of SPEC.md, section 7.3.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use vdma_protocol::{Access, Argument, Operation, RequestHeader, ResultValue, Shape};

/// The cells of the rows of the table in section 7.3.
fn table() -> Vec<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("SPEC.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, section) = text.split_once("\n### 7.3 ").unwrap();
    let (section, _) = section.split_once("\n### 7.4 ").unwrap();
    section
        .lines()
        .skip_while(|line| !line.starts_with("| code |"))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            let inside = line.trim().trim_start_matches('|').trim_end_matches('|');
            inside
                .split('|')
                .map(|cell| cell.trim().to_owned())
                .collect()
        })
        .collect()
}

fn data(cell: &str) -> bool {
    match cell {
        "" => false,
        "data" => true,
        _ => panic!("a data part is {cell:?}"),
    }
}

fn shape(cells: &[String]) -> Shape {
    let [outgoing, incoming, at_offset, argument, value, divisible] = cells else {
        panic!("{cells:?}");
    };
    Shape {
        outgoing: data(outgoing),
        incoming: data(incoming),
        at_offset: match at_offset.as_str() {
            "" => Access::None,
            "read" => Access::Read,
            "written" => Access::Write,
            _ => panic!("D[offset…] is {at_offset:?}"),
        },
        argument: match argument.as_str() {
            "" => Argument::Ignored,
            "offset" => Argument::Offset,
            "pattern" => Argument::Pattern,
            "checksum" => Argument::Checksum,
            _ => panic!("argument is {argument:?}"),
        },
        value: match value.as_str() {
            "" => ResultValue::None,
            "index" => ResultValue::FirstDifference,
            "checksum" => ResultValue::Checksum,
            _ => panic!("value is {value:?}"),
        },
        divisible: match divisible.as_str() {
            "yes" => true,
            "no" => false,
            _ => panic!("divisible is {divisible:?}"),
        },
    }
}

#[test]
fn every_operation_has_the_shape_that_the_specification_gives_it() {
    let rows = table();
    assert_eq!(rows.len(), Operation::ALL.len());
    for (operation, row) in Operation::ALL.into_iter().zip(rows) {
        let [code, name, shape_cells @ .., does] = row.as_slice() else {
            panic!("{row:?}");
        };
        assert_eq!(*code, operation.code().to_string());
        assert_eq!(
            name.to_lowercase().replace('_', "-"),
            operation.name(),
            "code {code}"
        );
        assert_eq!(shape(shape_cells), operation.shape(), "{name}");
        assert_ne!(does, "", "{name}");
    }
}

#[test]
fn ranges_and_data_lengths_follow_from_the_shape() {
    for operation in Operation::ALL {
        let shape = operation.shape();
        let header = RequestHeader::new(operation, 100, 10, 200);
        let [first, second] = shape.ranges(&header);
        assert_eq!(
            first,
            (shape.at_offset != Access::None).then_some(100),
            "{operation:?}"
        );
        assert_eq!(
            second,
            (operation == Operation::Move).then_some(200),
            "{operation:?}"
        );
        let (outgoing, incoming) = shape.data_lengths(10);
        assert_eq!(outgoing, if shape.outgoing { 10 } else { 0 });
        assert_eq!(incoming, if shape.incoming { 10 } else { 0 });
        assert_eq!(
            shape.reads_device_memory(),
            shape.at_offset == Access::Read || second.is_some(),
            "{operation:?}"
        );
        assert_eq!(
            shape.writes_device_memory(),
            shape.at_offset == Access::Write,
            "{operation:?}"
        );
    }
}
