//! The selection of tests: a filter, and one of several equal parts.

/// One of several parts of a run, for machines that share it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Partition {
    part: usize,
    parts: usize,
}

impl std::str::FromStr for Partition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not K/N with K from 1 to N");
        let (part, parts) = text.split_once('/').ok_or_else(wrong)?;
        let part: usize = part.parse().map_err(|_| wrong())?;
        let parts: usize = parts.parse().map_err(|_| wrong())?;
        if part == 0 || part > parts {
            return Err(wrong());
        }
        Ok(Self {
            part: part - 1,
            parts,
        })
    }
}

/// The selection of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    /// Text that the names of tests have to contain.
    pub(crate) filter: Option<String>,
    /// The part of the tests to run.
    pub(crate) partition: Option<Partition>,
}

impl Selection {
    /// Returns the selected `tests`, in the order given.
    ///
    /// All machines of a partitioned run have to pass the same tests in the same order.
    pub(crate) fn select<T>(&self, tests: Vec<T>, name: impl Fn(&T) -> &str) -> Vec<T> {
        let matching = tests.into_iter().filter(|test| {
            self.filter
                .as_ref()
                .is_none_or(|filter| name(test).contains(filter.as_str()))
        });
        match self.partition {
            None => matching.collect(),
            Some(Partition { part, parts }) => matching
                .enumerate()
                .filter(|(index, _)| index % parts == part)
                .map(|(_, test)| test)
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(selection: &Selection) -> Vec<&'static str> {
        selection.select(
            vec!["a::one", "a::two", "b::one", "b::two", "b::three"],
            |n| n,
        )
    }

    #[test]
    fn partitions_are_disjoint_and_complete() {
        let mut all: Vec<&str> = Vec::new();
        for part in 1..=3 {
            all.extend(names(&Selection {
                filter: None,
                partition: Some(format!("{part}/3").parse().unwrap()),
            }));
        }
        all.sort_unstable();
        assert_eq!(all, ["a::one", "a::two", "b::one", "b::three", "b::two"]);
    }

    #[test]
    fn a_filter_is_part_of_a_name() {
        let selection = Selection {
            filter: Some("b::t".to_owned()),
            partition: None,
        };
        assert_eq!(names(&selection), ["b::two", "b::three"]);
    }

    #[test]
    fn invalid_partitions_are_refused() {
        for text in ["", "1", "0/2", "3/2", "a/b", "1/0", "-1/2"] {
            assert!(text.parse::<Partition>().is_err(), "{text}");
        }
    }
}
