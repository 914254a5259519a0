//! Objects made at random from the type table, sent through everything that reads objects.

use std::sync::LazyLock;

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};
use tandem_api::{Entropy, Object, SeededEntropy};

use crate::{
    Registry, fields,
    json::Fields,
    protobuf,
    schema::{Field, Label, Schema, Shape, Type},
    selectors::{FieldSelector, LabelSelector},
};

static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::builtin);
const MAX_DEPTH: usize = 7;

struct Maker<'a> {
    schema: &'a Schema,
    random: SeededEntropy,
    /// Whether some values have types that the schema does not allow.
    wrong: bool,
}

impl Maker<'_> {
    fn pick(&self, below: usize) -> usize {
        let mut bytes = [0; 4];
        self.random.fill(&mut bytes);
        u32::from_le_bytes(bytes) as usize % below
    }

    fn object(&self, ty: &Type, depth: usize) -> Value {
        let mut map = Fields::new();
        for field in &ty.fields {
            let rare = 2 + depth + ty.fields.len() / 12;
            if depth < MAX_DEPTH && self.pick(rare) == 0 {
                map.insert(field.name.to_string(), self.labelled(field, depth));
            }
        }
        Value::Object(map)
    }

    fn labelled(&self, field: &Field, depth: usize) -> Value {
        if self.wrong && self.pick(12) == 0 {
            return self.nonsense();
        }
        match field.label {
            Label::One => self.value(field.shape, depth),
            Label::List => (0..1 + self.pick(2)).map(|_| self.value(field.shape, depth)).collect(),
            Label::Map => {
                Value::Object((0..1 + self.pick(2)).map(|_| (self.text(), self.value(field.shape, depth))).collect())
            }
        }
    }

    fn text(&self) -> String {
        const TEXTS: [&str; 14] = [
            "a",
            "web-1",
            "RollingUpdate",
            "Always",
            "TCP",
            "10.0.0.1",
            "kubernetes.io/tls",
            "In",
            "ä-ß",
            "A_b",
            "25%",
            "system:x",
            "apps/v1",
            "None",
        ];
        TEXTS[self.pick(TEXTS.len())].to_owned()
    }

    fn nonsense(&self) -> Value {
        [Value::Null, json!(-1), json!("ü"), json!([null, {}]), json!({"x": []}), json!(true), json!(1.5)][self.pick(7)]
            .clone()
    }

    fn value(&self, shape: Shape, depth: usize) -> Value {
        match shape {
            Shape::String => self.text().into(),
            Shape::Bool => (self.pick(2) == 0).into(),
            Shape::Int32 | Shape::Int64 => (self.pick(70_000) as i64 - 100).into(),
            Shape::Double => json!(self.pick(100) as f64 / 4.0),
            Shape::Bytes => "AAEC".into(),
            Shape::Quantity => ["1", "500m", "1Gi", "-2", "0"][self.pick(5)].into(),
            Shape::IntOrString => [json!(0), json!(8080), json!("http"), json!("30%")][self.pick(4)].clone(),
            Shape::Time => "2026-01-02T03:04:05Z".into(),
            Shape::MicroTime => "2026-01-02T03:04:05.000006Z".into(),
            Shape::Duration => "1m30s".into(),
            Shape::Raw | Shape::Fields => json!({"f:x": {}}),
            Shape::Json => json!([1, "a"]),
            Shape::Strings => json!(["a", "b"]),
            Shape::SchemaOrArray(id) => match self.pick(2) {
                0 => self.object(self.schema.get(id), depth + 1),
                _ => Value::Array(vec![self.object(self.schema.get(id), depth + 1)]),
            },
            Shape::SchemaOrBool(_) => (self.pick(2) == 0).into(),
            Shape::SchemaOrStrings(_) => json!(["a"]),
            Shape::Object(id) => self.object(self.schema.get(id), depth + 1),
        }
    }
}

fn made(seed: u64, which: usize, wrong: bool) -> (std::sync::Arc<crate::ResourceDef>, Object) {
    let def = REGISTRY.all()[which].clone();
    let maker = Maker { schema: REGISTRY.schema(), random: SeededEntropy::new(seed), wrong };
    let ty = REGISTRY.schema().ty(&def.type_name).unwrap();
    let mut object = Object::from_value(maker.object(ty, 0)).unwrap();
    object.set(&["apiVersion"], def.api_version());
    object.set(&["kind"], def.kind.as_str());
    (def, object)
}

fn through_everything(def: &crate::ResourceDef, object: &Object, old: &Object) {
    let mut new = object.clone();
    def.default(&mut new);
    def.prepare_update(&mut new, old);
    def.validate_update(&new, old);
    def.prepare_status(&mut new, old);
    def.validate_status(&new, old);
    let mut created = object.clone();
    def.default(&mut created);
    def.prepare_create(&mut created);
    def.validate_create(&created);
    let cells = (def.hooks.cells)(&created, Timestamp::UNIX_EPOCH);
    assert_eq!(cells.len(), def.columns.len());
    (def.hooks.fields)(&created);
    if let Some(conversion) = def.conversion {
        (conversion.to_storage)(&mut created);
        (conversion.from_storage)(&mut created);
    }
    protobuf::encode(REGISTRY.schema(), &Value::Object(created.0.clone()));
    let _ = LabelSelector::from_value(created.at(&["spec", "selector"]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// Whatever the fields hold, no hook panics.
    #[test]
    fn nothing_panics_on_nonsense(seed: u64, other: u64, which in 0_usize..69) {
        let (def, object) = made(seed, which, true);
        let (_, old) = made(other, which, true);
        through_everything(&def, &object, &old);
        let mut pruned = object.clone();
        fields::check(REGISTRY.schema(), &def.type_name, &object);
        let _ = fields::types(REGISTRY.schema(), &def.type_name, &object);
        fields::prune(REGISTRY.schema(), &def.type_name, &mut pruned);
        let again = { let mut again = pruned.clone(); fields::prune(REGISTRY.schema(), &def.type_name, &mut again); again };
        prop_assert_eq!(again, pruned);
    }

    /// Objects that fit the schema survive protobuf, and defaults keep them fitting.
    #[test]
    fn sound_objects_stay_sound(seed: u64, which in 0_usize..69) {
        let (def, mut object) = made(seed, which, false);
        let schema = REGISTRY.schema();
        fields::prune(schema, &def.type_name, &mut object);
        prop_assert_eq!(fields::check(schema, &def.type_name, &object), Vec::<String>::new());
        prop_assert_eq!(fields::types(schema, &def.type_name, &object), Ok(()));
        let bytes = protobuf::encode(schema, &Value::Object(object.0.clone())).unwrap();
        prop_assert_eq!(&protobuf::decode(schema, &REGISTRY, &bytes).unwrap(), &object);
        def.default(&mut object);
        let once = object.clone();
        def.default(&mut object);
        prop_assert_eq!(&object, &once, "defaults are not idempotent");
        prop_assert_eq!(fields::check(schema, &def.type_name, &object), Vec::<String>::new());
        prop_assert_eq!(fields::types(schema, &def.type_name, &object), Ok(()));
        through_everything(&def, &object, &once);
    }

    #[test]
    fn selectors_of_any_text(text in "[a-z!=<>(), /.\\\\]{0,20}|\\PC{0,20}") {
        let _ = LabelSelector::parse(&text).map(|selector| selector.matches(&Object::default()));
        if let Ok(selector) = FieldSelector::parse(&text) {
            let def = REGISTRY.all()[0].clone();
            let _ = selector.check(&def);
            selector.matches(&def, &Object::default());
        }
    }

    #[test]
    fn strict_parsing_reads_what_serde_json_reads(seed: u64, which in 0_usize..69) {
        let (_, object) = made(seed, which, true);
        let (read, duplicates) = fields::parse_strict(&object.to_vec()).unwrap();
        prop_assert_eq!(read, object);
        prop_assert!(duplicates.is_empty());
    }
}
