use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use serde_json::Value;
use tandem_cel::{Pattern, Patterns, Program};

use crate::{
    json::{Fields, FieldsExt},
    schema::ListType,
};

/// How deep a schema may be nested.
pub(crate) const DEPTH_MAX: usize = 100;
/// How many schemas, one within the other, one version of a kind may have.
pub(crate) const NODES_MAX: usize = 100_000;
/// What the compiled patterns of one version of a kind may take together, those of its rules among them, in bytes.
pub(crate) const PATTERNS_MAX_BYTES: usize = 10 << 20;

/// A JSON type by its name in a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JsonType {
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
}

impl JsonType {
    pub(crate) const NAMES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

    fn parse(text: &str) -> Option<JsonType> {
        Some(match text {
            "object" => JsonType::Object,
            "array" => JsonType::Array,
            "string" => JsonType::String,
            "integer" => JsonType::Integer,
            "number" => JsonType::Number,
            "boolean" => JsonType::Boolean,
            _ => return None,
        })
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            JsonType::Object => "object",
            JsonType::Array => "array",
            JsonType::String => "string",
            JsonType::Integer => "integer",
            JsonType::Number => "number",
            JsonType::Boolean => "boolean",
        }
    }
}

/// What an object may have beside its properties.
#[derive(Debug, Default)]
pub(crate) enum Additional {
    #[default]
    None,
    Any,
    Node(Box<Node>),
}

/// What a single value must be like, beyond its type.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    pub(crate) allowed: Option<Vec<Value>>,
    pub(crate) pattern: Option<Arc<Pattern>>,
    pub(crate) format: Option<String>,
    pub(crate) minimum: Option<(f64, bool)>,
    pub(crate) maximum: Option<(f64, bool)>,
    pub(crate) multiple_of: Option<f64>,
    pub(crate) min_length: Option<usize>,
    pub(crate) max_length: Option<usize>,
    pub(crate) min_items: Option<usize>,
    pub(crate) max_items: Option<usize>,
    pub(crate) min_properties: Option<usize>,
    pub(crate) max_properties: Option<usize>,
    pub(crate) required: Vec<String>,
}

/// A rule in CEL (`x-kubernetes-validations`).
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) text: String,
    pub(crate) program: Program,
    pub(crate) message: Option<String>,
    pub(crate) message_expression: Option<Program>,
    /// The `reason` of the cause: `FieldValueInvalid` and the like.
    pub(crate) reason: &'static str,
    pub(crate) field_path: String,
    /// Whether the rule also runs where there is no old value.
    pub(crate) optional_old: bool,
}

/// One schema of a structural schema.
#[derive(Debug, Default)]
pub(crate) struct Node {
    pub(crate) ty: Option<JsonType>,
    pub(crate) nullable: bool,
    pub(crate) preserve: bool,
    pub(crate) embedded: bool,
    pub(crate) int_or_string: bool,
    pub(crate) properties: BTreeMap<String, Node>,
    pub(crate) additional: Additional,
    pub(crate) items: Option<Box<Node>>,
    pub(crate) default: Option<Value>,
    pub(crate) list_type: ListType,
    pub(crate) list_keys: Vec<Cow<'static, str>>,
    pub(crate) limits: Limits,
    pub(crate) all_of: Vec<Node>,
    pub(crate) any_of: Vec<Node>,
    pub(crate) one_of: Vec<Node>,
    pub(crate) not: Option<Box<Node>>,
    pub(crate) rules: Vec<Rule>,
    /// Whether there is a default here or below.
    pub(crate) has_defaults: bool,
    /// Whether there is a rule here or below.
    pub(crate) has_rules: bool,
    /// Why the schema could not be read.
    pub(crate) broken: Option<String>,
}

impl Node {
    /// The node of a member of an object.
    pub(crate) fn member(&self, name: &str) -> Option<&Node> {
        match (self.properties.get(name), &self.additional) {
            (Some(property), _) => Some(property),
            (None, Additional::Node(node)) => Some(node),
            (None, Additional::None | Additional::Any) => None,
        }
    }

    /// The default of a key of the elements of this list.
    pub(crate) fn key_default(&self, key: &str) -> Option<&Value> {
        self.items.as_ref()?.properties.get(key)?.default.as_ref()
    }
}

/// Reads a schema. What is too large or cannot be read is an error in words.
pub(crate) fn read(schema: &Fields) -> Result<Node, String> {
    let mut reader = Reader { nodes: 0, patterns: Patterns::new(PATTERNS_MAX_BYTES) };
    reader.node(schema, 0)
}

struct Reader {
    nodes: usize,
    patterns: Patterns,
}

impl Reader {
    fn pattern(&mut self, text: &str) -> Result<Arc<Pattern>, String> {
        self.patterns.compile(text).map_err(|why| format!("the pattern {text:?} cannot be used: {why}"))
    }

    fn node(&mut self, schema: &Fields, depth: usize) -> Result<Node, String> {
        self.nodes += 1;
        if depth > DEPTH_MAX {
            return Err(format!("a schema may be nested at most {DEPTH_MAX} deep"));
        }
        if self.nodes > NODES_MAX {
            return Err(format!("a schema may consist of at most {NODES_MAX} schemas"));
        }
        let mut node = Node {
            ty: JsonType::parse(schema.text("type")),
            nullable: schema.flag("nullable"),
            preserve: schema.flag("x-kubernetes-preserve-unknown-fields"),
            embedded: schema.flag("x-kubernetes-embedded-resource"),
            int_or_string: schema.flag("x-kubernetes-int-or-string"),
            default: schema.get("default").filter(|value| !value.is_null()).cloned(),
            list_type: list_type(schema),
            list_keys: texts(schema, "x-kubernetes-list-map-keys").into_iter().map(Cow::Owned).collect(),
            limits: self.limits(schema)?,
            rules: rules(schema, &mut self.patterns)?,
            ..Node::default()
        };
        for (name, property) in schema.child("properties").into_iter().flatten() {
            if let Value::Object(property) = property {
                node.properties.insert(name.clone(), self.node(property, depth + 1)?);
            }
        }
        node.additional = match schema.get("additionalProperties") {
            Some(Value::Object(inner)) => Additional::Node(Box::new(self.node(inner, depth + 1)?)),
            Some(Value::Bool(true)) => Additional::Any,
            _ => Additional::None,
        };
        if let Some(items) = schema.child("items") {
            node.items = Some(Box::new(self.node(items, depth + 1)?));
        }
        for (key, place) in [("allOf", &mut node.all_of), ("anyOf", &mut node.any_of), ("oneOf", &mut node.one_of)] {
            *place = schema.each(key).map(|inner| self.node(inner, depth + 1)).collect::<Result<_, _>>()?;
        }
        if let Some(not) = schema.child("not") {
            node.not = Some(Box::new(self.node(not, depth + 1)?));
        }
        let below: Vec<(bool, bool)> = children(&node).map(|child| (child.has_defaults, child.has_rules)).collect();
        node.has_defaults = node.default.is_some() || below.iter().any(|(defaults, _)| *defaults);
        node.has_rules = !node.rules.is_empty() || below.iter().any(|(_, rules)| *rules);
        Ok(node)
    }

    fn limits(&mut self, schema: &Fields) -> Result<Limits, String> {
        let count = |key: &str| schema.int(key).and_then(|number| usize::try_from(number).ok());
        let number = |key: &str| schema.get(key).and_then(Value::as_f64);
        let pattern = match schema.text("pattern") {
            "" => None,
            text => Some(self.pattern(text)?),
        };
        Ok(Limits {
            allowed: schema.get("enum").and_then(Value::as_array).cloned(),
            pattern,
            format: Some(schema.text("format")).filter(|text| !text.is_empty()).map(str::to_owned),
            minimum: number("minimum").map(|least| (least, schema.flag("exclusiveMinimum"))),
            maximum: number("maximum").map(|most| (most, schema.flag("exclusiveMaximum"))),
            multiple_of: number("multipleOf"),
            min_length: count("minLength"),
            max_length: count("maxLength"),
            min_items: count("minItems"),
            max_items: count("maxItems"),
            min_properties: count("minProperties"),
            max_properties: count("maxProperties"),
            required: texts(schema, "required"),
        })
    }
}

fn children(node: &Node) -> impl Iterator<Item = &Node> {
    let additional = match &node.additional {
        Additional::Node(inner) => Some(&**inner),
        Additional::None | Additional::Any => None,
    };
    node.properties.values().chain(additional).chain(node.items.as_deref())
}

fn texts(schema: &Fields, key: &str) -> Vec<String> {
    schema.list(key).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn list_type(schema: &Fields) -> ListType {
    match (schema.text("x-kubernetes-list-type"), schema.text("x-kubernetes-map-type")) {
        ("set", _) => ListType::Set,
        ("map", _) => ListType::Map,
        ("atomic", _) => ListType::Atomic,
        (_, "atomic") => ListType::AtomicMap,
        (_, "granular") => ListType::GranularMap,
        _ => ListType::Unset,
    }
}

fn rules(schema: &Fields, patterns: &mut Patterns) -> Result<Vec<Rule>, String> {
    let mut compile = |text: &str| {
        Program::compile(text, patterns).map_err(|why| format!("the expression {text:?} cannot be used: {why}"))
    };
    let mut rule = |rule: &Fields| {
        let text = rule.text("rule");
        let message_expression = match rule.text("messageExpression") {
            "" => None,
            text => Some(compile(text)?),
        };
        Ok(Rule {
            text: text.trim().to_owned(),
            program: compile(text)?,
            message: Some(rule.text("message").trim().to_owned()).filter(|message| !message.is_empty()),
            message_expression,
            reason: match rule.text("reason") {
                "FieldValueForbidden" => "FieldValueForbidden",
                "FieldValueRequired" => "FieldValueRequired",
                "FieldValueDuplicate" => "FieldValueDuplicate",
                _ => "FieldValueInvalid",
            },
            field_path: rule.text("fieldPath").to_owned(),
            optional_old: rule.flag("optionalOldSelf"),
        })
    };
    schema.each("x-kubernetes-validations").map(&mut rule).collect()
}
