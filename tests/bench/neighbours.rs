use tandem_tests::{
    cluster::Daemon,
    neighbours::{self, Client, Phases, median_ratio},
};

use crate::report::{Goal, Report, median};

const ROUNDS: usize = 15;

/// What a component notices of four others that loop for ever.
pub(crate) fn loops(report: &mut Report, cluster: &Daemon) {
    for (client, name) in [(Client::Elsewhere, "elsewhere"), (Client::OnTheNode, "on the node")] {
        let rounds = neighbours::measure(cluster, ROUNDS, client);
        let alone = |phases: &Phases| phases.alone.first.as_secs_f64() * 1e3;
        let what = format!("hello component, p99 of a paced client {name}");
        report.figure(&what, median(rounds.iter().map(alone).collect()), "ms", Goal::None);
        let begin = median_ratio(&rounds, |phases| phases.beside_loops.first, |phases| phases.alone.first);
        report.figure("the same while four endless loops begin, ratio", begin, "", Goal::AtMost(1.2));
        let last = median_ratio(&rounds, |phases| phases.beside_loops.later, |phases| phases.alone.later);
        report.figure("the same beside them 1.5 s later, ratio", last, "", Goal::AtMost(1.2));
        let busy = median_ratio(&rounds, |phases| phases.beside_processes.first, |phases| phases.alone.first);
        report.figure("the same while processes at the lowest priority begin, ratio", busy, "", Goal::None);
    }
    cluster.read(&["delete", "deployment/loops", "pod/quick"]);
}
