//! Sets of indexes as ranges: their size is that of their text, however many indexes a user asks for.

use std::collections::BTreeMap;

/// The first of each range and its last; no two ranges touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges(BTreeMap<i32, i32>);

impl Ranges {
    /// `1,3-5` and nothing that is not `below`.
    pub(super) fn parse(text: Option<&str>, below: i32) -> Ranges {
        let mut ranges = Ranges::default();
        for part in text.unwrap_or_default().split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
                ranges.insert_range(first.max(0), last.min(below.saturating_sub(1)));
            }
        }
        ranges
    }

    pub(super) fn insert(&mut self, index: i32) {
        self.insert_range(index, index);
    }

    fn insert_range(&mut self, mut first: i32, mut last: i32) {
        if first > last {
            return;
        }
        while let Some((&other, &end)) = self.0.range(..=last.saturating_add(1)).next_back() {
            if i64::from(end) + 1 < i64::from(first) {
                break;
            }
            self.0.remove(&other);
            (first, last) = (first.min(other), last.max(end));
        }
        self.0.insert(first, last);
    }

    pub(super) fn contains(&self, index: i32) -> bool {
        self.0.range(..=index).next_back().is_some_and(|(_, last)| *last >= index)
    }

    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|(first, last)| size(*first, *last)).sum()
    }

    /// How many indexes are in both.
    pub(super) fn common(&self, other: &Ranges) -> usize {
        let (mut mine, mut others) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut count = 0;
        while let (Some((first, last)), Some((other_first, other_last))) = (mine.peek(), others.peek()) {
            count += size(**first.max(other_first), **last.min(other_last));
            if last < other_last {
                mine.next();
            } else {
                others.next();
            }
        }
        count
    }

    /// What is in either.
    pub(super) fn with(&self, others: impl IntoIterator<Item = (i32, i32)>) -> Ranges {
        let mut both = self.clone();
        others.into_iter().for_each(|(first, last)| both.insert_range(first, last));
        both
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (i32, i32)> + '_ {
        self.0.iter().map(|(first, last)| (*first, *last))
    }

    /// The indexes that are not in it, from 0 on. Nothing is counted that nobody asks for.
    pub(super) fn absent(self, below: i32) -> impl Iterator<Item = i32> {
        let ends = std::iter::once((below, below));
        let mut from = 0;
        let gaps = self.0.into_iter().chain(ends).map(move |(first, last)| {
            let gap = from..first.min(below);
            from = last.saturating_add(1);
            gap
        });
        gaps.flatten()
    }

    pub(super) fn format(&self) -> String {
        let show = |(first, last): (i32, i32)| match size(first, last) {
            1 => first.to_string(),
            2 => format!("{first},{last}"),
            _ => format!("{first}-{last}"),
        };
        self.iter().map(show).collect::<Vec<_>>().join(",")
    }
}

fn size(first: i32, last: i32) -> usize {
    usize::try_from(i64::from(last) - i64::from(first) + 1).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Ranges {
        Ranges::parse(Some(text), i32::MAX)
    }

    #[test]
    fn indexes_are_written_as_ranges() {
        for text in ["", "0", "0,1", "1,3-5,7"] {
            assert_eq!(Ranges::parse(Some(text), 10).format(), text);
        }
        assert_eq!(Ranges::parse(Some("2-9"), 4).format(), "2,3", "what the Job has no more is left out");
        assert_eq!(parse("3-1,x,,-2,5").format(), "5", "what is no range is left out");
    }

    #[test]
    fn ranges_that_touch_become_one() {
        let mut ranges = parse("7-9,1,3-5,4-6");
        assert_eq!(ranges.format(), "1,3-9");
        ranges.insert(2);
        assert_eq!((ranges.format().as_str(), ranges.len()), ("1-9", 9));
        ranges.insert(5);
        ranges.insert(11);
        assert_eq!(ranges.format(), "1-9,11");
        assert_eq!([0, 1, 9, 10, 11, 12].map(|index| ranges.contains(index)), [false, true, true, false, true, false]);
    }

    #[test]
    fn common_and_absent_indexes() {
        assert_eq!(parse("0-3,6-9,20").common(&parse("2-7,9,10-30")), 2 + 2 + 1 + 1);
        assert_eq!(parse("0-3").common(&Ranges::default()), 0);
        let absent = |text: &str, below| parse(text).absent(below).collect::<Vec<_>>();
        assert_eq!(absent("0,2-3,9-12", 7), [1, 4, 5, 6]);
        assert_eq!(absent("2-3", 3), [0, 1]);
        assert_eq!(absent("0-9", 5), [0; 0]);
    }

    #[test]
    fn as_many_indexes_as_there_can_be_cost_nothing() {
        let all = parse("0-2147483647");
        assert_eq!(all.len(), 2_147_483_647);
        assert_eq!(all.common(&all), 2_147_483_647);
        assert_eq!(Ranges::default().absent(i32::MAX).take(2).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(parse("0-2000000000").absent(i32::MAX).next(), Some(2_000_000_001));
        assert_eq!(parse("-5--1").format(), "");
    }
}
