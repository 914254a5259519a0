//! Cells of measured use.

use jiff::Timestamp;
use serde_json::Value;
use tandem_api::Object;

use crate::{
    json::{Fields, FieldsExt},
    quantity::Quantity,
};

pub(crate) fn node(object: &Object, _now: Timestamp) -> Vec<Value> {
    cells(object, &object.0.child("usage").into_iter().collect::<Vec<_>>())
}

pub(crate) fn pod(object: &Object, _now: Timestamp) -> Vec<Value> {
    cells(object, &object.0.each("containers").filter_map(|container| container.child("usage")).collect::<Vec<_>>())
}

fn cells(object: &Object, usage: &[&Fields]) -> Vec<Value> {
    let sum = |resource: &str| {
        let amounts = usage.iter().filter_map(|usage| Quantity::parse(usage.text(resource)).ok());
        amounts.fold(Quantity::ZERO, Quantity::plus).to_string()
    };
    vec![object.name().into(), sum("cpu").into(), sum("memory").into(), object.0.text("window").into()]
}
