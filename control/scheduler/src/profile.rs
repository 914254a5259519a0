//! Schedulers by name: what each filters by, likes, and how pods that say nothing are spread. Read from a
//! `KubeSchedulerConfiguration`.
//!
//! <https://kubernetes.io/docs/reference/scheduling/config/>

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::{
    PROFILE, PodInfo, Snapshot,
    filters::{self, Filter},
    scores::{self, Score},
    snapshot::SpreadConstraint,
};

/// Of a large cluster only so many possible nodes are compared: the cost of a pod does not grow with the cluster.
const ENOUGH: usize = 100;
/// Schedulers that a file may name.
const PROFILES_MAX: usize = 16;
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
const HOSTNAME_LABEL: &str = "kubernetes.io/hostname";

/// Which use of a node is liked. The points of a shape are percents of use, and scores up to 100.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Strategy {
    LeastAllocated,
    MostAllocated,
    RequestedToCapacityRatio(Vec<(i64, i64)>),
}

/// How the use of a node's resources counts, with the weights of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fit {
    pub strategy: Strategy,
    pub resources: Vec<(String, i64)>,
}

impl Default for Fit {
    fn default() -> Fit {
        Fit { strategy: Strategy::LeastAllocated, resources: vec![("cpu".to_owned(), 1), ("memory".to_owned(), 1)] }
    }
}

/// What decides for the pods of one `schedulerName`.
#[derive(Clone, Debug)]
pub struct Profile {
    pub name: String,
    pub filters: &'static [Filter],
    pub scores: Vec<Score>,
    /// The number of possible nodes after which no more are looked for.
    pub enough: usize,
    pub fit: Fit,
    /// Topology keys and skews by which pods that say nothing should be spread.
    pub spread: Vec<(String, i64)>,
}

impl Default for Profile {
    fn default() -> Profile {
        Profile {
            name: PROFILE.to_owned(),
            filters: filters::ALL,
            scores: scores::ALL.to_vec(),
            enough: ENOUGH,
            fit: Fit::default(),
            spread: vec![(HOSTNAME_LABEL.to_owned(), 3), (ZONE_LABEL.to_owned(), 5)],
        }
    }
}

impl Profile {
    /// How a pod that says nothing should be spread: like those of its Services and its controller.
    pub(crate) fn spread(&self, pod: &PodInfo, snapshot: &Snapshot) -> Vec<SpreadConstraint> {
        let Some(selector) = snapshot.owners.selector(pod).filter(|_| !self.spread.is_empty()) else {
            return Vec::new();
        };
        let constraint = |(key, skew): &(String, i64)| SpreadConstraint::preferred(key, *skew, selector.clone());
        self.spread.iter().map(constraint).collect()
    }
}

/// Why a file of profiles cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("it is no KubeSchedulerConfiguration that is understood here: {0}")]
    Format(#[from] serde_saphyr::Error),
    #[error("{0}")]
    Content(String),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Configuration {
    api_version: String,
    kind: String,
    #[serde(default)]
    profiles: Vec<Described>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Described {
    #[serde(default)]
    scheduler_name: String,
    #[serde(default)]
    plugins: Plugins,
    #[serde(default)]
    plugin_config: Vec<PluginConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Plugins {
    #[serde(default)]
    score: PluginSet,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PluginSet {
    #[serde(default)]
    enabled: Vec<Plugin>,
    #[serde(default)]
    disabled: Vec<Plugin>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Plugin {
    name: String,
    #[serde(default)]
    weight: i64,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "name", content = "args", deny_unknown_fields)]
enum PluginConfig {
    NodeResourcesFit(FitArgs),
    PodTopologySpread(SpreadArgs),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FitArgs {
    scoring_strategy: ScoringStrategy,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ScoringStrategy {
    r#type: StrategyType,
    #[serde(default)]
    resources: Vec<Plugin>,
    requested_to_capacity_ratio: Option<Shape>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum StrategyType {
    LeastAllocated,
    MostAllocated,
    RequestedToCapacityRatio,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shape {
    shape: Vec<Point>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Point {
    utilization: i64,
    score: i64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SpreadArgs {
    #[serde(default)]
    default_constraints: Vec<Constraint>,
    defaulting_type: Defaulting,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Defaulting {
    System,
    List,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Constraint {
    max_skew: i64,
    topology_key: String,
    when_unsatisfiable: String,
}

fn refused<T>(why: impl Into<String>) -> Result<T, Error> {
    Err(Error::Content(why.into()))
}

/// The profiles of a file; what it says and is not there is refused.
pub fn read(text: &str) -> Result<Vec<Profile>, Error> {
    let file: Configuration = serde_saphyr::from_str(text)?;
    if (file.kind.as_str(), file.api_version.as_str())
        != ("KubeSchedulerConfiguration", "kubescheduler.config.k8s.io/v1")
    {
        return refused(format!(
            "it must be a KubeSchedulerConfiguration of kubescheduler.config.k8s.io/v1, and is a {} of {}",
            file.kind, file.api_version
        ));
    }
    if file.profiles.len() > PROFILES_MAX {
        return refused(format!("it has {} profiles, and at most {PROFILES_MAX} are allowed", file.profiles.len()));
    }
    let profiles: Vec<Profile> = file.profiles.into_iter().map(profile).collect::<Result<_, _>>()?;
    let names: BTreeSet<&str> = profiles.iter().map(|profile| profile.name.as_str()).collect();
    if names.len() < profiles.len() {
        return refused("two of its profiles have the same schedulerName");
    }
    Ok(if profiles.is_empty() { vec![Profile::default()] } else { profiles })
}

fn profile(described: Described) -> Result<Profile, Error> {
    let mut profile = Profile::default();
    if !described.scheduler_name.is_empty() {
        profile.name = described.scheduler_name;
    }
    let weights = weights(&profile.scores, described.plugins.score)?;
    profile.scores.retain_mut(|score| weights.get(score.name).map(|weight| score.weight = *weight).is_some());
    for config in described.plugin_config {
        match config {
            PluginConfig::NodeResourcesFit(args) => profile.fit = fit(args.scoring_strategy)?,
            PluginConfig::PodTopologySpread(args) => spread(&mut profile, args)?,
        }
    }
    Ok(profile)
}

/// The scores that count, and how much.
fn weights(known: &[Score], set: PluginSet) -> Result<BTreeMap<String, i64>, Error> {
    let mut weights: BTreeMap<String, i64> = known.iter().map(|score| (score.name.to_owned(), score.weight)).collect();
    let all = weights.clone();
    for plugin in set.disabled {
        match plugin.name.as_str() {
            "*" => weights.clear(),
            name if all.contains_key(name) => drop(weights.remove(name)),
            name => return refused(format!("there is no score plugin {name:?} to be disabled")),
        }
    }
    for plugin in set.enabled {
        let Some(default) = all.get(&plugin.name) else {
            return refused(format!("there is no score plugin {:?}", plugin.name));
        };
        let weight = if plugin.weight == 0 { *default } else { plugin.weight };
        if !(1..=100).contains(&weight) {
            return refused(format!("the weight of {} must be from 1 to 100", plugin.name));
        }
        weights.insert(plugin.name, weight);
    }
    Ok(weights)
}

fn fit(described: ScoringStrategy) -> Result<Fit, Error> {
    let shape = described.requested_to_capacity_ratio.map(|ratio| ratio.shape).unwrap_or_default();
    let strategy = match described.r#type {
        StrategyType::LeastAllocated => Strategy::LeastAllocated,
        StrategyType::MostAllocated => Strategy::MostAllocated,
        StrategyType::RequestedToCapacityRatio => {
            let is_valid = |point: &Point| (0..=100).contains(&point.utilization) && (0..=10).contains(&point.score);
            let rises = shape.windows(2).all(|pair| pair[0].utilization < pair[1].utilization);
            if shape.is_empty() || !rises || !shape.iter().all(is_valid) {
                return refused(
                    "the shape of requestedToCapacityRatio needs points with a utilization that rises from 0 to 100 \
                     and a score from 0 to 10",
                );
            }
            Strategy::RequestedToCapacityRatio(shape.iter().map(|at| (at.utilization, at.score * 10)).collect())
        }
    };
    let mut fit = Fit { strategy, ..Fit::default() };
    if !described.resources.is_empty() {
        fit.resources = described.resources.into_iter().map(|one| (one.name, one.weight.max(1))).collect();
    }
    match fit.resources.iter().find(|(_, weight)| *weight > 100) {
        Some((name, _)) => refused(format!("the weight of the resource {name} must be from 1 to 100")),
        None => Ok(fit),
    }
}

fn spread(profile: &mut Profile, args: SpreadArgs) -> Result<(), Error> {
    if args.defaulting_type == Defaulting::System {
        let is_empty = args.default_constraints.is_empty();
        return if is_empty { Ok(()) } else { refused("defaultConstraints need the defaultingType List") };
    }
    profile.spread.clear();
    for constraint in args.default_constraints {
        if constraint.when_unsatisfiable != "ScheduleAnyway" || constraint.max_skew < 1 {
            return refused("defaultConstraints need a maxSkew of at least 1 and whenUnsatisfiable ScheduleAnyway");
        }
        profile.spread.push((constraint.topology_key, constraint.max_skew));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(profiles: &str) -> Result<Vec<Profile>, Error> {
        read(&format!(
            "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\nprofiles: {profiles}"
        ))
    }

    #[test]
    fn profiles_are_read() {
        assert_eq!(of("[]").unwrap()[0].name, PROFILE);
        let profiles = of(
            "[{}, {schedulerName: tight, plugins: {score: {disabled: [{name: '*'}], enabled: [{name: NodeResourcesFit, weight: 7}]}}, \
             pluginConfig: [{name: NodeResourcesFit, args: {scoringStrategy: {type: RequestedToCapacityRatio, \
             resources: [{name: cpu, weight: 2}], requestedToCapacityRatio: {shape: [{utilization: 0, score: 0}, {utilization: 100, score: 10}]}}}}, \
             {name: PodTopologySpread, args: {defaultingType: List, defaultConstraints: []}}]}]",
        )
        .unwrap();
        let tight = &profiles[1];
        let scores: Vec<(&str, i64)> = tight.scores.iter().map(|score| (score.name, score.weight)).collect();
        assert_eq!((tight.name.as_str(), scores), ("tight", vec![("NodeResourcesFit", 7)]));
        assert_eq!(tight.fit.strategy, Strategy::RequestedToCapacityRatio(vec![(0, 0), (100, 100)]));
        assert_eq!((tight.fit.resources.as_slice(), tight.spread.len()), (&[("cpu".to_owned(), 2)][..], 0));
    }

    #[test]
    fn what_is_not_there_is_refused() {
        for (profiles, why) in [
            ("[{}, {}]", "same schedulerName"),
            ("[{percentageOfNodesToScore: 5}]", "percentageOfNodesToScore"),
            ("[{plugins: {filter: {}}}]", "filter"),
            ("[{plugins: {score: {enabled: [{name: Mine}]}}}]", "no score plugin \"Mine\""),
            ("[{plugins: {score: {enabled: [{name: NodeAffinity, weight: 101}]}}}]", "from 1 to 100"),
            ("[{pluginConfig: [{name: Mine, args: {}}]}]", "Mine"),
            (
                "[{pluginConfig: [{name: NodeResourcesFit, args: {scoringStrategy: {type: RequestedToCapacityRatio}}}]}]",
                "shape",
            ),
        ] {
            let error = of(profiles).unwrap_err().to_string();
            assert!(error.contains(why), "{profiles}: {error}");
        }
        assert!(read("apiVersion: v1\nkind: Pod").is_err());
    }
}
