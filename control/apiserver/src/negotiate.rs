use tandem_api::{ApiError, Reason};

/// The formats of answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Format {
    #[default]
    Json,
    Yaml,
    /// Of built-in kinds, as typed clients ask for.
    Protobuf,
}

/// What of an object is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Shape {
    #[default]
    Whole,
    /// `PartialObjectMetadata`.
    Metadata,
    Table,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Representation {
    pub(crate) format: Format,
    pub(crate) shape: Shape,
}

/// What an endpoint can send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offer {
    /// Objects that are stored: whole, as metadata, as a table.
    Stored,
    /// Answers that are computed: whole only.
    Computed,
}

/// The first clause of an `Accept` header that can be served. Tables have no protobuf form.
pub(crate) fn negotiate(accept: Option<&str>, offer: Offer) -> Result<Representation, ApiError> {
    let accept = accept.unwrap_or("*/*");
    if accept.trim().is_empty() {
        return Ok(Representation::default());
    }
    accept.split(',').find_map(|clause| serve(clause.trim(), offer)).ok_or_else(|| {
        ApiError::new(
            Reason::NotAcceptable,
            "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf",
        )
    })
}

fn serve(clause: &str, offer: Offer) -> Option<Representation> {
    let mut parts = clause.split(';').map(str::trim);
    let format = match parts.next()?.to_ascii_lowercase().as_str() {
        "application/json" | "application/*" | "*/*" => Format::Json,
        "application/yaml" => Format::Yaml,
        "application/vnd.kubernetes.protobuf" => Format::Protobuf,
        _ => return None,
    };
    let (mut kind, mut group, mut version) = ("", "meta.k8s.io", "v1");
    for part in parts {
        match part.split_once('=') {
            Some(("as", value)) => kind = value,
            Some(("g", value)) => group = value,
            Some(("v", value)) => version = value,
            _ => {}
        }
    }
    let shape = match (kind, offer) {
        ("", _) => Shape::Whole,
        ("Table", Offer::Stored) => Shape::Table,
        ("PartialObjectMetadata" | "PartialObjectMetadataList", Offer::Stored) => Shape::Metadata,
        _ => return None,
    };
    let served = match (shape, format) {
        (Shape::Whole, _) => true,
        (Shape::Table, Format::Protobuf) => false,
        (Shape::Table | Shape::Metadata, _) => group == "meta.k8s.io" && version == "v1",
    };
    served.then_some(Representation { format, shape })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(accept: &str, offer: Offer, expected: Option<(Format, Shape)>) {
        let found = negotiate(Some(accept), offer).ok();
        assert_eq!(found.map(|found| (found.format, found.shape)), expected, "{accept}");
    }

    #[test]
    fn what_kubectl_and_others_ask_for() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        check(table, Offer::Stored, Some((Format::Json, Shape::Table)));
        check(table, Offer::Computed, Some((Format::Json, Shape::Whole)));
        check("application/json;as=Table;v=v1;g=meta.k8s.io", Offer::Computed, None);
        check(
            "application/vnd.kubernetes.protobuf,application/json",
            Offer::Stored,
            Some((Format::Protobuf, Shape::Whole)),
        );
        check("application/vnd.kubernetes.protobuf;as=Table;g=meta.k8s.io;v=v1", Offer::Stored, None);
        check("application/json;as=Table;v=v1beta1;g=meta.k8s.io", Offer::Stored, None);
        check("application/json, */*", Offer::Stored, Some((Format::Json, Shape::Whole)));
        check("application/yaml", Offer::Stored, Some((Format::Yaml, Shape::Whole)));
        check("text/html", Offer::Stored, None);
        let metadata = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
        check(metadata, Offer::Stored, Some((Format::Protobuf, Shape::Metadata)));
    }
}
