//! The name rules of Kubernetes (RFC 1123, RFC 1035), with the messages that its users know.

const DNS1123_LABEL_MAX: usize = 63;
const DNS1123_SUBDOMAIN_MAX: usize = 253;

const LABEL_MESSAGE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_MESSAGE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const DNS1035_MESSAGE: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";

fn is_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edges =
        bytes.first().zip(bytes.last()).is_some_and(|(first, last)| is_alphanumeric(*first) && is_alphanumeric(*last));
    edges && bytes.iter().all(|byte| is_alphanumeric(*byte) || *byte == b'-')
}

fn checks(text: &str, max: usize, sound: bool, message: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if text.len() > max {
        problems.push(format!("must be no more than {max} bytes"));
    }
    if !sound {
        problems.push(message.to_owned());
    }
    problems
}

/// What is wrong with a DNS-1123 label; empty when nothing is.
pub fn dns1123_label(text: &str) -> Vec<String> {
    checks(text, DNS1123_LABEL_MAX, is_label(text), LABEL_MESSAGE)
}

/// What is wrong with a DNS-1123 subdomain, the name rule of most kinds.
pub fn dns1123_subdomain(text: &str) -> Vec<String> {
    checks(text, DNS1123_SUBDOMAIN_MAX, text.split('.').all(is_label), SUBDOMAIN_MESSAGE)
}

/// What is wrong with a DNS-1035 label, the name rule of Services before 1.34.
pub fn dns1035_label(text: &str) -> Vec<String> {
    let sound = is_label(text) && text.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
    checks(text, DNS1123_LABEL_MAX, sound, DNS1035_MESSAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_subdomains() {
        assert!(dns1123_label("web-1").is_empty());
        assert!(dns1123_subdomain("a.b-c.d").is_empty());
        assert!(dns1035_label("web").is_empty());
        assert_eq!(dns1035_label("1web").len(), 1);
        for bad in ["", "-a", "a-", "A", "a_b", "a..b", "ä"] {
            assert_eq!(dns1123_subdomain(bad).len(), 1, "{bad}");
        }
        assert_eq!(dns1123_label(&"a".repeat(64)), ["must be no more than 63 bytes"]);
    }
}
