use tandem_tests::{
    cluster::Daemon,
    neighbours::{Pair, median_ratio, neighbour_pairs},
};

use crate::report::{Goal, Report, median};

const PAIRS: usize = 15;

/// What a component notices of four others that loop for ever.
pub(crate) fn loops(report: &mut Report, cluster: &Daemon) {
    let pairs = neighbour_pairs(cluster, PAIRS);
    let alone = |pair: &Pair| pair.alone.as_secs_f64() * 1e3;
    report.figure(
        "hello component, p99 of a paced client",
        median(pairs.iter().map(alone).collect()),
        "ms",
        Goal::None,
    );
    let ratio = median_ratio(&pairs);
    report.figure("the same beside four endless loops, ratio", ratio, "", Goal::AtMost(1.2));
    cluster.read(&["delete", "deployment/loops", "pod/quick"]);
}
