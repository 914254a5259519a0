//! What claims and volumes mean to each other: the same for who binds them, who schedules their pods and who mounts
//! them. All pure.
//!
//! <https://kubernetes.io/docs/concepts/storage/persistent-volumes/>

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        core::v1::{
            Node, NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec, Pod,
            TopologySelectorTerm,
        },
        storage::v1::StorageClass,
    },
    apimachinery::pkg::api::resource::Quantity as Amount,
};
use kube::core::{Selector, SelectorExt};
use tandem_api::{Quantity, volumes::OLD_CLASS};

use crate::node_selector;

pub use tandem_api::volumes::{CLAIM_PROTECTION, FOLDER_FINALIZER, NODE_LABEL, PROVISIONER, VOLUME_PROTECTION};

/// A class with this provisioner has volumes made by hand only.
pub const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
/// The label of a node that provisioned volumes ask for.
pub const HOSTNAME_LABEL: &str = "kubernetes.io/hostname";
/// The node that the scheduler chose for the first pod of a claim.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
pub const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
pub const WAIT_FOR_FIRST_CONSUMER: &str = "WaitForFirstConsumer";

pub const READ_WRITE_ONCE_POD: &str = "ReadWriteOncePod";

/// The names of the claims that a pod mounts or may mount.
pub fn claims_of(pod: &Pod) -> impl Iterator<Item = &str> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    volumes.iter().filter_map(|volume| Some(volume.persistent_volume_claim.as_ref()?.claim_name.as_str()))
}

fn claim_spec(claim: &PersistentVolumeClaim) -> Option<&PersistentVolumeClaimSpec> {
    claim.spec.as_ref()
}

/// The class of a claim: `None` if it has none yet, empty if it wants none.
pub fn class_of(claim: &PersistentVolumeClaim) -> Option<&str> {
    let old = claim.metadata.annotations.as_ref().and_then(|all| all.get(OLD_CLASS));
    old.map(String::as_str).or_else(|| claim_spec(claim)?.storage_class_name.as_deref())
}

/// The class of a volume; empty if it has none.
pub fn class_of_volume(volume: &PersistentVolume) -> &str {
    let old = volume.metadata.annotations.as_ref().and_then(|all| all.get(OLD_CLASS));
    let class = old.or_else(|| volume.spec.as_ref()?.storage_class_name.as_ref());
    class.map(String::as_str).unwrap_or_default()
}

/// The volume that a claim names, bound to it or not.
pub fn volume_name(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim_spec(claim)?.volume_name.as_deref().filter(|name| !name.is_empty())
}

/// Both halves of the binding are written.
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    let annotations = claim.metadata.annotations.as_ref();
    volume_name(claim).is_some() && annotations.is_some_and(|all| all.contains_key(BIND_COMPLETED))
}

pub fn phase(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// A claim that only one pod at a time may use.
pub fn is_exclusive(claim: &PersistentVolumeClaim) -> bool {
    access_modes(claim).iter().any(|mode| mode == READ_WRITE_ONCE_POD)
}

fn access_modes(claim: &PersistentVolumeClaim) -> &[String] {
    claim_spec(claim).and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default()
}

/// Whom a volume is promised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    Nobody,
    /// The claim, by its name or by its uid as well.
    This,
    Other,
}

pub fn promised(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Promise {
    let Some(reference) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) else { return Promise::Nobody };
    let meta = &claim.metadata;
    let uid = reference.uid.as_deref().filter(|uid| !uid.is_empty());
    let same = reference.name == meta.name && reference.namespace == meta.namespace;
    if same && uid.is_none_or(|uid| Some(uid) == meta.uid.as_deref()) { Promise::This } else { Promise::Other }
}

fn storage(amounts: Option<&BTreeMap<String, Amount>>) -> Quantity {
    let amount = amounts.and_then(|amounts| amounts.get("storage"));
    amount.and_then(|amount| Quantity::parse(&amount.0).ok()).unwrap_or(Quantity::ZERO)
}

pub fn capacity(volume: &PersistentVolume) -> Quantity {
    storage(volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()))
}

fn mode(mode: Option<&String>) -> &str {
    mode.map_or("Filesystem", String::as_str)
}

/// Why a volume cannot be a claim's, in Kubernetes' words; whom it is promised to is not looked at.
pub fn mismatch(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<&'static str> {
    let (Some(wanted), Some(spec)) = (claim.spec.as_ref(), volume.spec.as_ref()) else { return Some("no spec") };
    let requests = wanted.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let modes = spec.access_modes.as_deref().unwrap_or_default();
    if storage(requests) > capacity(volume) {
        Some("requested PV is too small")
    } else if class_of(claim).unwrap_or_default() != class_of_volume(volume) {
        Some("storageClassName does not match")
    } else if mode(wanted.volume_mode.as_ref()) != mode(spec.volume_mode.as_ref()) {
        Some("incompatible volumeMode")
    } else if !access_modes(claim).iter().all(|mode| modes.contains(mode)) {
        Some("incompatible accessMode")
    } else {
        None
    }
}

/// The volume for a claim that names none: the first candidate that is where `reaches` says.
pub fn find<'a, V: AsRef<PersistentVolume>>(
    claim: &PersistentVolumeClaim,
    volumes: impl Iterator<Item = &'a V>,
    reaches: impl Fn(&PersistentVolume) -> bool,
) -> Option<&'a V> {
    candidates(claim, volumes).into_iter().find(|volume| reaches((*volume).as_ref()))
}

/// The volumes that a claim that names none can have, wherever they are, the best first: those that are promised to
/// it, then those that are free and have what it asks for by their size.
pub fn candidates<'a, V: AsRef<PersistentVolume>>(
    claim: &PersistentVolumeClaim,
    volumes: impl Iterator<Item = &'a V>,
) -> Vec<&'a V> {
    let selector = claim_spec(claim).and_then(|spec| spec.selector.clone());
    let selector = match selector.map(Selector::try_from) {
        None => None,
        Some(Ok(selector)) => Some(selector),
        Some(Err(_)) => return Vec::new(),
    };
    let none = BTreeMap::new();
    let mut found: Vec<(bool, Quantity, &str, &V)> = Vec::new();
    for one in volumes {
        let volume = one.as_ref();
        if volume.metadata.deletion_timestamp.is_some() || mismatch(claim, volume).is_some() {
            continue;
        }
        let (size, name) = (capacity(volume), volume.metadata.name.as_deref().unwrap_or_default());
        match promised(volume, claim) {
            Promise::This => {
                found.push((false, size, name, one));
                continue;
            }
            Promise::Other => continue,
            Promise::Nobody => {}
        }
        let labels = volume.metadata.labels.as_ref().unwrap_or(&none);
        if selector.as_ref().is_some_and(|selector| !selector.matches(labels)) {
            continue;
        }
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Released" | "Failed")) {
            continue;
        }
        found.push((true, size, name, one));
    }
    found.sort_by(|(free, size, name, _), (other, least, first, _)| (free, size, name).cmp(&(other, least, first)));
    found.into_iter().map(|(_, _, _, volume)| volume).collect()
}

fn terms(volume: &PersistentVolume) -> Option<&[NodeSelectorTerm]> {
    let affinity = volume.spec.as_ref()?.node_affinity.as_ref()?;
    Some(affinity.required.as_ref()?.node_selector_terms.as_slice())
}

/// Whether the volume can be used on a node of this name with these labels.
pub fn reaches(volume: &PersistentVolume, name: &str, labels: &BTreeMap<String, String>) -> bool {
    terms(volume).is_none_or(|terms| terms.iter().any(|term| node_selector::matches(term, name, labels)))
}

/// The same for a whole Node.
pub fn reaches_node(volume: &PersistentVolume, node: &Node) -> bool {
    let none = BTreeMap::new();
    reaches(volume, node.metadata.name.as_deref().unwrap_or_default(), node.metadata.labels.as_ref().unwrap_or(&none))
}

/// Whether the class lets its volumes be made on a node with these labels.
pub fn allows(class: &StorageClass, labels: &BTreeMap<String, String>) -> bool {
    let terms = class.allowed_topologies.as_deref().unwrap_or_default();
    let holds = |term: &TopologySelectorTerm| {
        let wanted = term.match_label_expressions.as_deref().unwrap_or_default();
        wanted.iter().all(|one| labels.get(&one.key).is_some_and(|own| one.values.contains(own)))
    };
    terms.is_empty() || terms.iter().any(holds)
}

/// The node that has the folder of a volume of the built-in provisioner.
pub fn home(volume: &PersistentVolume) -> Option<&str> {
    let driver = &volume.spec.as_ref()?.csi.as_ref()?.driver;
    let node = volume.metadata.labels.as_ref()?.get(NODE_LABEL)?;
    (driver == PROVISIONER).then_some(node.as_str())
}

fn has_finalizer(volume: &PersistentVolume, finalizer: &str) -> bool {
    volume.metadata.finalizers.iter().flatten().any(|mine| mine == finalizer)
}

/// The object waits for nothing but its folder.
pub fn waits_for_its_folder(volume: &PersistentVolume) -> bool {
    let meta = &volume.metadata;
    meta.deletion_timestamp.is_some()
        && has_finalizer(volume, FOLDER_FINALIZER)
        && !has_finalizer(volume, VOLUME_PROTECTION)
}

/// What becomes of the data goes by the policy: only `Delete` takes it away.
pub fn is_kept(volume: &PersistentVolume) -> bool {
    let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    policy != Some("Delete")
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;

    use super::*;

    fn read<T: DeserializeOwned>(text: &str) -> T {
        serde_saphyr::from_str(text).unwrap()
    }

    fn claim(spec: &str) -> PersistentVolumeClaim {
        read(&format!("{{metadata: {{name: c, namespace: ns, uid: u}}, spec: {{{spec}}}}}"))
    }

    fn volume(name: &str, size: &str, more: &str) -> Box<PersistentVolume> {
        let text = format!(
            "{{metadata: {{name: {name}, labels: {{tier: {name}}}}}, spec: {{capacity: {{storage: {size}}}, \
             accessModes: [ReadWriteOnce, ReadOnlyMany]{more}}}}}"
        );
        Box::new(read(&text))
    }

    const SMALL: &str = "accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}";

    fn check(spec: &str, volumes: &[Box<PersistentVolume>], expected: Option<&str>) {
        let found = find(&claim(spec), volumes.iter(), |_| true);
        assert_eq!(found.and_then(|volume| volume.metadata.name.as_deref()), expected, "{spec}");
    }

    #[test]
    fn the_smallest_volume_that_fits_is_found() {
        let volumes =
            [volume("huge", "10Gi", ""), volume("b", "2Gi", ""), volume("a", "2Gi", ""), volume("s", "1Mi", "")];
        check(SMALL, &volumes, Some("a"));
        check("accessModes: [ReadWriteMany], resources: {requests: {storage: 1Gi}}", &volumes, None);
        check("accessModes: [ReadWriteOnce], resources: {requests: {storage: 11Gi}}", &volumes, None);
        check(&format!("{SMALL}, storageClassName: fast"), &volumes, None);
        check(&format!("{SMALL}, volumeMode: Block"), &volumes, None);
        check(&format!("{SMALL}, selector: {{matchLabels: {{tier: huge}}}}"), &volumes, Some("huge"));
        check(&format!("{SMALL}, selector: {{matchLabels: {{tier: s}}}}"), &volumes, None);
    }

    #[test]
    fn a_promised_volume_comes_first_and_is_nobody_elses() {
        let promise = |to: &str| format!(", claimRef: {{name: {to}, namespace: ns}}");
        let volumes = [volume("small", "1Gi", ""), volume("mine", "5Gi", &promise("c"))];
        check(SMALL, &volumes, Some("mine"));
        check(SMALL, &[volume("other", "1Gi", &promise("d"))], None);
        let volumes = [volume("b", "2Gi", ""), volume("a", "2Gi", ""), volume("mine", "5Gi", &promise("c"))];
        let found: Vec<_> = candidates(&claim(SMALL), volumes.iter());
        let names: Vec<_> = found.iter().filter_map(|volume| volume.metadata.name.as_deref()).collect();
        assert_eq!(names, ["mine", "a", "b"], "the best first");
        let before = ", claimRef: {name: c, namespace: ns, uid: earlier}";
        check(SMALL, &[volume("released", "1Gi", before)], None);
    }

    #[test]
    fn a_volume_is_where_its_affinity_says() {
        let here = ", nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: \
                    [{key: kubernetes.io/hostname, operator: In, values: [n1]}]}]}}";
        let labels = |name: &str| BTreeMap::from([(HOSTNAME_LABEL.to_owned(), name.to_owned())]);
        let volume = volume("v", "1Gi", here);
        assert!(reaches(&volume, "n1", &labels("n1")) && !reaches(&volume, "n2", &labels("n2")));
        let found = find(&claim(SMALL), [&volume].into_iter(), |volume| reaches(volume, "n2", &labels("n2")));
        assert!(found.is_none());
    }
}
