//! Sets of numbers as ranges that neither touch nor overlap: what interval sets of the kernel take.

/// First and last, both included.
pub(super) type Range = (u32, u32);

/// The same numbers in order, with what touches or overlaps joined.
pub(super) fn joined(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.retain(|(first, last)| first <= last);
    ranges.sort_unstable();
    let mut all: Vec<Range> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match all.last_mut() {
            Some(before) if before.1 >= first.saturating_sub(1) => before.1 = before.1.max(last),
            _ => all.push((first, last)),
        }
    }
    all
}

/// What is in `from` and not in `taken`.
pub(super) fn without(from: Range, taken: Vec<Range>) -> Vec<Range> {
    let mut left = Vec::new();
    let mut next = Some(from.0);
    for (first, last) in joined(taken) {
        let Some(start) = next.filter(|start| *start <= from.1) else { break };
        if last < start {
            continue;
        }
        if first > start {
            left.push((start, (first - 1).min(from.1)));
        }
        next = last.checked_add(1);
    }
    left.extend(next.filter(|start| *start <= from.1).map(|start| (start, from.1)));
    left
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_hold_what_they_should(
            wanted in prop::collection::vec((0_u32..40, 0_u32..40), 0..6),
            taken in prop::collection::vec((0_u32..40, 0_u32..40), 0..6),
            from in (0_u32..40, 0_u32..40),
        ) {
            let within = |ranges: &[Range], number: u32| ranges.iter().any(|(first, last)| (*first..=*last).contains(&number));
            let all = joined(wanted.clone());
            prop_assert!(all.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "{all:?}");
            let left = without(from, taken.clone());
            for number in 0..40 {
                prop_assert_eq!(within(&all, number), within(&wanted, number));
                prop_assert_eq!(within(&left, number), within(&[from], number) && !within(&taken, number));
            }
        }
    }

    #[test]
    fn the_ends_of_all_numbers_are_numbers_too() {
        assert_eq!(joined(vec![(0, u32::MAX), (5, 9)]), [(0, u32::MAX)]);
        assert_eq!(without((0, u32::MAX), vec![(0, 9), (u32::MAX, u32::MAX)]), [(10, u32::MAX - 1)]);
        assert_eq!(without((0, u32::MAX), vec![(0, u32::MAX)]), []);
    }
}
