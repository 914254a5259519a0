//! Small words for reading and filling in JSON objects, so that hooks read like the rules they state.

use serde_json::{Map, Value};

pub(crate) type Fields = Map<String, Value>;

pub(crate) trait FieldsExt {
    /// The text of a field; empty where there is none.
    fn text(&self, key: &str) -> &str;
    fn int(&self, key: &str) -> Option<i64>;
    fn flag(&self, key: &str) -> bool;
    fn child(&self, key: &str) -> Option<&Fields>;
    fn list(&self, key: &str) -> &[Value];
    /// The objects of a list.
    fn each(&self, key: &str) -> impl Iterator<Item = &Fields>;
    /// The pairs of a map of strings.
    fn pairs(&self, key: &str) -> impl Iterator<Item = (&str, &str)>;
    /// Sets a field that is not there.
    fn or_set(&mut self, key: &str, value: impl Into<Value>);
    /// Sets a text that is not there or empty.
    fn or_text(&mut self, key: &str, value: &str);
    /// Sets a number that is not there or 0.
    fn or_nonzero(&mut self, key: &str, value: i64);
    fn child_mut(&mut self, key: &str) -> Option<&mut Fields>;
    /// The object under a key, made if there is none.
    fn child_or_new(&mut self, key: &str) -> Option<&mut Fields>;
    fn each_mut(&mut self, key: &str) -> impl Iterator<Item = &mut Fields>;
}

impl FieldsExt for Fields {
    fn text(&self, key: &str) -> &str {
        self.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    fn int(&self, key: &str) -> Option<i64> {
        self.get(key).and_then(Value::as_i64)
    }

    fn flag(&self, key: &str) -> bool {
        self.get(key).and_then(Value::as_bool).unwrap_or_default()
    }

    fn child(&self, key: &str) -> Option<&Fields> {
        self.get(key).and_then(Value::as_object)
    }

    fn list(&self, key: &str) -> &[Value] {
        self.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    fn each(&self, key: &str) -> impl Iterator<Item = &Fields> {
        self.list(key).iter().filter_map(Value::as_object)
    }

    fn pairs(&self, key: &str) -> impl Iterator<Item = (&str, &str)> {
        self.child(key).into_iter().flatten().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
    }

    fn or_set(&mut self, key: &str, value: impl Into<Value>) {
        let slot = self.entry(key).or_insert(Value::Null);
        if slot.is_null() {
            *slot = value.into();
        }
    }

    fn or_text(&mut self, key: &str, value: &str) {
        if self.text(key).is_empty() {
            self.insert(key.to_owned(), value.into());
        }
    }

    fn or_nonzero(&mut self, key: &str, value: i64) {
        if self.int(key).unwrap_or_default() == 0 {
            self.insert(key.to_owned(), value.into());
        }
    }

    fn child_mut(&mut self, key: &str) -> Option<&mut Fields> {
        self.get_mut(key).and_then(Value::as_object_mut)
    }

    fn child_or_new(&mut self, key: &str) -> Option<&mut Fields> {
        self.or_set(key, Fields::new());
        self.child_mut(key)
    }

    fn each_mut(&mut self, key: &str) -> impl Iterator<Item = &mut Fields> {
        let list = self.get_mut(key).and_then(Value::as_array_mut);
        list.into_iter().flatten().filter_map(Value::as_object_mut)
    }
}
