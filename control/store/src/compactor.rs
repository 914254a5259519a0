//! When history is forgotten: a plan from times and revisions, and the marks it is made from.

use std::{collections::VecDeque, time::Duration};

use jiff::Timestamp;
use tandem_api::Revision;

use crate::Command;

/// How often history is compacted, unless the options say otherwise.
pub const COMPACTION_INTERVAL: Duration = Duration::from_secs(300);

/// A listing can go on, and a read can name a revision, for one to two intervals.
const LISTS_INTERVALS: u32 = 1;

/// A watch can resume for at least three intervals.
const WATCHES_INTERVALS: u32 = 3;

/// The revision at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) at: Timestamp,
    pub(crate) revision: Revision,
}

/// What is to be forgotten at `now`: nothing, until there are marks that are old enough.
pub(crate) fn plan(marks: &VecDeque<Mark>, now: Timestamp, interval: Duration) -> Option<Command> {
    let before = |intervals: u32| {
        let old_enough =
            |mark: &&Mark| now.duration_since(mark.at).unsigned_abs() >= interval * intervals && mark.at <= now;
        marks.iter().rev().find(old_enough).map_or(Revision::ZERO, |mark| mark.revision)
    };
    let (lists, watches) = (before(LISTS_INTERVALS), before(WATCHES_INTERVALS));
    (lists > Revision::ZERO).then(|| Command::horizons(lists, watches))
}

/// Notes the present, and forgets the marks that no plan needs any more.
pub(crate) fn note(marks: &mut VecDeque<Mark>, mark: Mark) {
    marks.push_back(mark);
    while marks.len() > WATCHES_INTERVALS as usize + 2 {
        marks.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn lists_reach_back_five_to_ten_minutes_and_watches_fifteen_to_twenty() {
        let start = Timestamp::UNIX_EPOCH;
        let mut marks = VecDeque::new();
        let mut shown = String::new();
        for tick in 0..8u32 {
            let now = start + COMPACTION_INTERVAL * tick;
            let planned = plan(&marks, now, COMPACTION_INTERVAL);
            shown.push_str(&format!("{tick}: {:?}\n", planned.map(|command| command.ops)));
            note(&mut marks, Mark { at: now, revision: Revision(u64::from(tick) * 100 + 1) });
        }
        assert_eq!(marks.len(), 5);
        expect![[r#"
            0: None
            1: Some([Compact { before: Revision(1), watches: Revision(0) }])
            2: Some([Compact { before: Revision(101), watches: Revision(0) }])
            3: Some([Compact { before: Revision(201), watches: Revision(1) }])
            4: Some([Compact { before: Revision(301), watches: Revision(101) }])
            5: Some([Compact { before: Revision(401), watches: Revision(201) }])
            6: Some([Compact { before: Revision(501), watches: Revision(301) }])
            7: Some([Compact { before: Revision(601), watches: Revision(401) }])
        "#]]
        .assert_eq(&shown);
    }

    #[test]
    fn a_clock_that_goes_back_forgets_nothing() {
        let later = Timestamp::UNIX_EPOCH + COMPACTION_INTERVAL * 9;
        let marks = VecDeque::from([Mark { at: later, revision: Revision(5) }]);
        assert_eq!(plan(&marks, Timestamp::UNIX_EPOCH, COMPACTION_INTERVAL), None);
    }
}
