use serde_json::{Value, json};
use tandem_api::{ApiError, Cause, Object, Reason};

use super::{FieldSet, nodes::Change};

/// Entries of updaters beyond these are folded into one, oldest first (Kubernetes' own cap).
const UPDATERS_MAX: usize = 10;
const ANCIENT: &str = "ancient-changes";

/// Who writes, how, and when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writer<'a> {
    pub(crate) manager: &'a str,
    pub(crate) api_version: &'a str,
    pub(crate) subresource: &'a str,
    /// RFC 3339, in seconds.
    pub(crate) time: &'a str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Operation {
    Apply,
    Update,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    manager: String,
    operation: Operation,
    api_version: String,
    subresource: String,
    time: String,
    fields: FieldSet,
}

impl Entry {
    fn read(value: &Value) -> Option<Entry> {
        let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let operation = match text("operation").as_str() {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return None,
        };
        Some(Entry {
            manager: text("manager"),
            operation,
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time: text("time"),
            fields: FieldSet::from_json(value.get("fieldsV1")?),
        })
    }

    fn to_json(&self) -> Value {
        let operation = match self.operation {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        };
        let mut entry = json!({
            "manager": self.manager, "operation": operation, "apiVersion": self.api_version,
            "time": self.time, "fieldsType": "FieldsV1", "fieldsV1": self.fields.to_json(),
        });
        if !self.subresource.is_empty() {
            entry["subresource"] = self.subresource.as_str().into();
        }
        entry
    }

    /// Appliers are one manager in all versions; updaters are told apart by version.
    fn is_of(&self, operation: Operation, writer: &Writer<'_>) -> bool {
        self.operation == operation
            && self.manager == writer.manager
            && self.subresource == writer.subresource
            && (operation == Operation::Apply || self.api_version == writer.api_version)
    }

    /// As conflict messages name it.
    fn title(&self) -> String {
        let mut title = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            title = format!("{title} with subresource {:?}", self.subresource);
        }
        match self.operation {
            Operation::Update if self.time.is_empty() => format!("{title} using {}", self.api_version),
            Operation::Update => format!("{title} using {} at {}", self.api_version, self.time),
            Operation::Apply => title,
        }
    }
}

/// The managers of one object and what they own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Managers(Vec<Entry>);

/// Whether the object asks to forget all owners: a single empty entry.
pub(crate) fn is_reset(object: &Object) -> bool {
    matches!(object.array_at(&["metadata", "managedFields"]), [Value::Object(only)] if only.is_empty())
}

impl Managers {
    /// The owners as the object tells them; `None` where it tells none.
    pub(crate) fn read(object: &Object) -> Option<Managers> {
        let entries: Vec<Entry> =
            object.array_at(&["metadata", "managedFields"]).iter().filter_map(Entry::read).collect();
        (!entries.is_empty()).then_some(Managers(entries))
    }

    pub(crate) fn write(&self, object: &mut Object) {
        if self.0.is_empty() {
            object.remove(&["metadata", "managedFields"]);
            return;
        }
        let entries: Vec<Value> = self.0.iter().map(Entry::to_json).collect();
        object.set(&["metadata", "managedFields"], entries);
    }

    pub(crate) fn same(&self, other: &Managers) -> bool {
        let timeless = |managers: &Managers| -> Vec<Entry> {
            managers.0.iter().map(|entry| Entry { time: String::new(), ..entry.clone() }).collect()
        };
        timeless(self) == timeless(other)
    }

    /// After an update: the writer owns what it set, others no longer own what it changed or removed.
    pub(super) fn update(&mut self, change: &Change, writer: &Writer<'_>) {
        let set = change.set();
        self.take_away(change, Operation::Update, writer);
        let entry = self.entry(Operation::Update, writer);
        entry.fields.subtract(&change.removed);
        entry.fields.union(&set);
        entry.time = writer.time.to_owned();
        self.tidy();
    }

    fn take_away(&mut self, change: &Change, operation: Operation, writer: &Writer<'_>) {
        let set = change.set();
        for entry in self.0.iter_mut().filter(|entry| !entry.is_of(operation, writer)) {
            entry.fields.subtract(&set);
            entry.fields.subtract(&change.removed);
        }
    }

    /// What the writer applied last.
    pub(crate) fn applied(&self, writer: &Writer<'_>) -> FieldSet {
        self.0
            .iter()
            .find(|entry| entry.is_of(Operation::Apply, writer))
            .map(|entry| entry.fields.clone())
            .unwrap_or_default()
    }

    /// What all others own together.
    pub(crate) fn others(&self, writer: &Writer<'_>) -> FieldSet {
        let mut others = FieldSet::default();
        for entry in self.0.iter().filter(|entry| !entry.is_of(Operation::Apply, writer)) {
            others.union(&entry.fields);
        }
        others
    }

    /// After an apply that set `fields` and changed the object by `change`. Without `force`, what others own may not
    /// have changed.
    pub(crate) fn apply(
        &mut self,
        fields: FieldSet,
        change: &Change,
        writer: &Writer<'_>,
        force: bool,
    ) -> Result<(), ApiError> {
        let conflicts = self.conflicts(&change.set(), writer);
        if !force && !conflicts.is_empty() {
            return Err(conflict(&conflicts));
        }
        self.take_away(change, Operation::Apply, writer);
        let entry = self.entry(Operation::Apply, writer);
        if entry.fields != fields || !change.is_empty() {
            entry.time = writer.time.to_owned();
        }
        entry.fields = fields;
        entry.api_version = writer.api_version.to_owned();
        self.tidy();
        Ok(())
    }

    fn conflicts(&self, set: &FieldSet, writer: &Writer<'_>) -> Vec<(String, Vec<String>)> {
        let others = self.0.iter().filter(|entry| !entry.is_of(Operation::Apply, writer));
        let found = others.map(|entry| (entry.title(), entry.fields.intersection(set).paths()));
        found.filter(|(_, paths)| !paths.is_empty()).collect()
    }

    fn entry(&mut self, operation: Operation, writer: &Writer<'_>) -> &mut Entry {
        let at = self.0.iter().position(|entry| entry.is_of(operation, writer)).unwrap_or_else(|| {
            self.0.push(Entry {
                manager: writer.manager.to_owned(),
                operation,
                api_version: writer.api_version.to_owned(),
                subresource: writer.subresource.to_owned(),
                time: writer.time.to_owned(),
                fields: FieldSet::default(),
            });
            self.0.len() - 1
        });
        &mut self.0[at]
    }

    /// Drops those who own nothing, folds the oldest updaters, orders appliers before updaters and then by time.
    fn tidy(&mut self) {
        self.0.retain(|entry| !entry.fields.is_empty());
        self.0.sort_by(|one, other| {
            let key = |entry: &Entry| (entry.operation, entry.time.clone(), entry.manager.clone());
            key(one).cmp(&key(other))
        });
        let updaters = self.0.iter().filter(|entry| entry.operation == Operation::Update).count();
        let Some(first) = self.0.iter().position(|entry| entry.operation == Operation::Update) else { return };
        for _ in UPDATERS_MAX..updaters {
            let oldest = self.0.remove(first);
            let next = &mut self.0[first];
            next.fields.union(&oldest.fields);
            next.manager = ANCIENT.to_owned();
        }
    }
}

fn conflict(conflicts: &[(String, Vec<String>)]) -> ApiError {
    let causes: Vec<Cause> = conflicts
        .iter()
        .flat_map(|(title, paths)| {
            paths.iter().map(move |path| Cause {
                reason: "FieldManagerConflict".to_owned(),
                message: format!("conflict with {title}"),
                field: path.clone(),
            })
        })
        .collect();
    let text = match causes.as_slice() {
        [only] => format!("{}: {}", only.message, only.field),
        _ => {
            let blocks = conflicts.iter().map(|(title, paths)| {
                let lines: Vec<String> = paths.iter().map(|path| format!("- {path}")).collect();
                format!("conflicts with {title}:\n{}", lines.join("\n"))
            });
            blocks.collect::<Vec<_>>().join("\n")
        }
    };
    let plural = if causes.len() == 1 { "" } else { "s" };
    let mut error =
        ApiError::new(Reason::Conflict, format!("Apply failed with {} conflict{plural}: {text}", causes.len()));
    error.details.causes = causes;
    error
}
