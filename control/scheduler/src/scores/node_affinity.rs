use crate::{
    filters::term_matches,
    snapshot::{NodeInfo, PodInfo},
};

/// Adds the weights of the preferred terms that the node matches.
pub(super) fn score(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let matching = pod.preferred.iter().filter(|term| term_matches(&term.preference, node));
    matching.map(|term| i64::from(term.weight)).sum()
}
