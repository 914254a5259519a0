//! Whether a pod puts up with a node's taint: the one rule that scheduler, node lifecycle and node share.

use k8s_openapi::api::core::v1::{Taint, Toleration};

/// <https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/>
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    if some(&toleration.effect).is_some_and(|effect| effect != taint.effect) {
        return false;
    }
    if some(&toleration.key).is_some_and(|key| key != taint.key) {
        return false;
    }
    match toleration.operator.as_deref() {
        Some("Exists") => true,
        None | Some("" | "Equal") => some(&toleration.key).is_some() && some(&toleration.value) == some(&taint.value),
        Some(_) => false,
    }
}

/// An empty field means the same as one that is not there.
fn some(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

/// Whether any of the tolerations covers the taint.
pub fn tolerated<'a>(tolerations: impl IntoIterator<Item = &'a Toleration>, taint: &Taint) -> bool {
    tolerations.into_iter().any(|toleration| tolerates(toleration, taint))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(key: &str, operator: &str, value: &str, effect: &str) -> bool {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let taint = Taint { key: "gpu".into(), value: some("a"), effect: "NoSchedule".into(), time_added: None };
        let toleration = Toleration {
            key: some(key),
            operator: some(operator),
            value: some(value),
            effect: some(effect),
            toleration_seconds: None,
        };
        tolerates(&toleration, &taint)
    }

    #[test]
    fn by_key_operator_value_and_effect() {
        assert!(check("gpu", "Equal", "a", "NoSchedule"));
        assert!(check("gpu", "", "a", ""));
        assert!(check("gpu", "Exists", "", "NoSchedule"));
        assert!(check("", "Exists", "", ""), "tolerates everything");
        assert!(!check("", "", "a", ""), "without a key only Exists means something");
        assert!(!check("gpu", "Equal", "b", "NoSchedule"));
        assert!(!check("gpu", "Equal", "a", "NoExecute"));
        assert!(!check("disk", "Exists", "", ""));
        assert!(!check("gpu", "Near", "a", ""));
    }
}
