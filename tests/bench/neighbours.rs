use tandem_tests::{
    cluster::Daemon,
    neighbours::{self, Phases, median_ratio},
};

use crate::report::{Goal, Report, median};

const ROUNDS: usize = 15;

/// What a component notices of four others that loop for ever.
pub(crate) fn loops(report: &mut Report, cluster: &Daemon) {
    let rounds = neighbours::measure(cluster, ROUNDS);
    let alone = |phases: &Phases| phases.alone.as_secs_f64() * 1e3;
    let what = "hello component, p99 of a paced client";
    report.figure(what, median(rounds.iter().map(alone).collect()), "ms", Goal::None);
    let ratio = median_ratio(&rounds, |phases| phases.beside_loops, |phases| phases.alone);
    report.figure("the same beside four endless loops, ratio", ratio, "", Goal::AtMost(1.2));
    let busy = median_ratio(&rounds, |phases| phases.beside_processes, |phases| phases.alone);
    report.figure("the same beside processes at the lowest priority, ratio", busy, "", Goal::None);
    cluster.read(&["delete", "deployment/loops", "pod/quick"]);
}
