//! What names the objects that are made from a pod template.

use k8s_openapi::api::core::v1::PodTemplateSpec;

const FNV_OFFSET: u32 = 0x811c_9dc5;
const FNV_PRIME: u32 = 0x0100_0193;
/// Kubernetes' alphabet for hashes in names: no vowels, so no words.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// The same for the same template and collision count, in every version of this program.
pub(crate) fn template_hash(template: &PodTemplateSpec, collisions: i32) -> String {
    // Maps are sorted and fields have an order, so the encoding is one and the same.
    let encoded = serde_json::to_vec(template).unwrap_or_default();
    let salt = if collisions > 0 { collisions.to_le_bytes().to_vec() } else { Vec::new() };
    let digest =
        encoded.iter().chain(&salt).fold(FNV_OFFSET, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(FNV_PRIME));
    digest.to_string().bytes().map(|digit| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()])).collect()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use k8s_openapi::api::core::v1::{Container, PodSpec};

    use super::*;

    #[test]
    fn the_hash_is_frozen() {
        let container = Container { name: "web".into(), image: Some("nginx:1.25".into()), ..Container::default() };
        let spec = PodSpec { containers: vec![container], ..PodSpec::default() };
        let template = PodTemplateSpec { spec: Some(spec), ..PodTemplateSpec::default() };
        expect!["65dd6f8cb"].assert_eq(&template_hash(&template, 0));
        expect!["597d5d9649"].assert_eq(&template_hash(&template, 1));
    }
}
