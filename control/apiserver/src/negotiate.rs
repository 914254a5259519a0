use tandem_api::{ApiError, Reason};
use tandem_registry::ResourceDef;

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
pub(crate) struct Offer {
    /// Not only whole, but also as metadata and as a table.
    shapes: bool,
    /// Whole objects in protobuf.
    messages: bool,
}

impl Offer {
    /// Answers that are computed, of a kind that is built in.
    pub(crate) const COMPUTED: Offer = Offer { shapes: false, messages: true };

    /// Objects of a resource. Kinds that are defined at run time have no protobuf form.
    pub(crate) fn of(def: &ResourceDef) -> Offer {
        Offer { shapes: true, messages: def.custom.is_none() }
    }

    pub(crate) fn whole(self) -> Offer {
        Offer { shapes: false, ..self }
    }
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
    let shape = match kind {
        "" => Shape::Whole,
        "Table" if offer.shapes => Shape::Table,
        "PartialObjectMetadata" | "PartialObjectMetadataList" if offer.shapes => Shape::Metadata,
        _ => return None,
    };
    let served = match (shape, format) {
        (Shape::Whole, Format::Protobuf) => offer.messages,
        (Shape::Whole, _) => true,
        (Shape::Table, Format::Protobuf) => false,
        (Shape::Table | Shape::Metadata, _) => group == "meta.k8s.io" && version == "v1",
    };
    served.then_some(Representation { format, shape })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORED: Offer = Offer { shapes: true, messages: true };
    const CUSTOM: Offer = Offer { shapes: true, messages: false };

    fn check(accept: &str, offer: Offer, expected: Option<(Format, Shape)>) {
        let found = negotiate(Some(accept), offer).ok();
        assert_eq!(found.map(|found| (found.format, found.shape)), expected, "{accept}");
    }

    #[test]
    fn what_kubectl_and_others_ask_for() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        check(table, STORED, Some((Format::Json, Shape::Table)));
        check(table, Offer::COMPUTED, Some((Format::Json, Shape::Whole)));
        check("application/json;as=Table;v=v1;g=meta.k8s.io", Offer::COMPUTED, None);
        check("application/vnd.kubernetes.protobuf,application/json", STORED, Some((Format::Protobuf, Shape::Whole)));
        check("application/vnd.kubernetes.protobuf;as=Table;g=meta.k8s.io;v=v1", STORED, None);
        check("application/json;as=Table;v=v1beta1;g=meta.k8s.io", STORED, None);
        check("application/json, */*", STORED, Some((Format::Json, Shape::Whole)));
        check("application/yaml", STORED, Some((Format::Yaml, Shape::Whole)));
        check("text/html", STORED, None);
        check("application/vnd.kubernetes.protobuf,application/json", CUSTOM, Some((Format::Json, Shape::Whole)));
        check("application/vnd.kubernetes.protobuf", CUSTOM, None);
        let metadata = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
        for offer in [STORED, CUSTOM] {
            check(metadata, offer, Some((Format::Protobuf, Shape::Metadata)));
        }
    }
}
