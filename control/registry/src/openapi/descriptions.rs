use std::{collections::HashMap, io::Read};

use flate2::read::GzDecoder;

/// Made by `examples/descriptions.rs`.
pub(super) const COMPRESSED: &[u8] = include_bytes!("../../data/descriptions.tsv.gz");

/// Of Tandem's own kinds, and of those that stand in no document of Kubernetes' own server.
const OWN: [(&str, &str, &str); 8] = [
    ("metrics.v1beta1.ContainerMetrics", "", "ContainerMetrics is what a container uses."),
    ("metrics.v1beta1.NodeMetrics", "", "NodeMetrics is what a node uses, measured over a window."),
    ("metrics.v1beta1.NodeMetricsList", "", "NodeMetricsList is a list of NodeMetrics."),
    ("metrics.v1beta1.PodMetrics", "", "PodMetrics is what the containers of a pod use, measured over a window."),
    ("metrics.v1beta1.PodMetricsList", "", "PodMetricsList is a list of PodMetrics."),
    ("tandem.v1.Image", "", "Image is a manifest in the cluster's registry under one name: a tag or a digest."),
    ("tandem.v1.ImageSpec", "", "ImageSpec says what a name in the registry stands for."),
    ("tandem.v1.ImageList", "", "ImageList is a list of Images."),
];

/// Descriptions by type and field; the empty field stands for the type itself.
pub(super) type Descriptions<'a> = HashMap<(&'a str, &'a str), &'a str>;

pub(super) fn read() -> String {
    let mut text = String::new();
    // The file is part of the program; what could be read of a broken one is better than no document.
    let _ = GzDecoder::new(COMPRESSED).read_to_string(&mut text);
    text
}

pub(super) fn index(text: &str) -> Descriptions<'_> {
    let own = OWN.into_iter().map(|(ty, field, text)| ((ty, field), text));
    text.lines()
        .filter_map(|line| {
            let mut cells = line.splitn(3, '\t');
            Some(((cells.next()?, cells.next()?), cells.next()?))
        })
        .chain(own)
        .collect()
}

pub(super) fn plain(description: &str) -> String {
    description.replace("\\n", "\n").replace("\\\\", "\\")
}
