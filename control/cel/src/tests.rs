use expect_test::{Expect, expect};
use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;

fn object() -> Json {
    json!({"replicas": 3, "max": 5, "name": "web-1", "ratio": 1, "hosts": ["a", "b"], "labels": {"app": "x", "a-b": "y"},
        "rules": [{"name": "one", "port": 80}, {"name": "two"}], "namespace": "n", "at": "2026-01-01T00:00:00Z"})
}

fn run(text: &str) -> Result<String, String> {
    let mut patterns = Patterns::new(1 << 20);
    let program = Program::compile(text, &mut patterns).map_err(|error| error.to_string())?;
    let object = object();
    let budget = Budget::new(100_000);
    let value = program.evaluate(&[("self", Value::from_json(&object))], &budget).map_err(|error| error.to_string())?;
    Ok(functions::text_of(&value).unwrap_or_else(|| value.type_name().to_owned()))
}

fn check(text: &str, expected: Expect) {
    expected.assert_eq(&run(text).unwrap_or_else(|error| format!("error: {error}")));
}

#[test]
fn holds() {
    for text in [
        "self.replicas <= self.max && self.name.startsWith('web')",
        "self.hosts.all(h, h.size() == 1) && self.hosts.exists(h, h == 'a') && self.hosts.exists_one(h, h == 'b')",
        "self.rules.filter(r, has(r.port)).size() == 1",
        "self.rules.map(r, r.name) == ['one', 'two']",
        "self.rules.map(r, has(r.port), r.port + 1) == [81]",
        "!has(self.missing) || self.missing > 3",
        "self.labels.all(key, key in ['app', 'a-b'])",
        "self.labels['a-b'] == 'y' && self.labels.a__dash__b == 'y'",
        "self.__namespace__ == 'n'",
        "self.?missing.orValue(7) == 7 && self.?max.hasValue() && self.labels[?'nope'].orValue('z') == 'z'",
        "self.?max.optMap(m, m * 2).orValue(0) == 10",
        "true || self.missing",
        "self.missing == 1 || true",
        "'a' in self.hosts && !('z' in self.labels)",
        "self.name.matches('^[a-z]+-[0-9]+$') && self.name.find('[0-9]+') == '1'",
        "size(self.hosts) == 2 && size('héé') == 3",
        "self.ratio * 2.5 == 2.5 && 7 / 2 == 3 && -7 % 3 == -1",
        "timestamp(self.at) < timestamp('2027-01-01T00:00:00Z') && duration('1h30m') > duration('89m')",
        "self.at < timestamp('2027-01-01T00:00:00Z') && timestamp(self.at).getFullYear() == 2026",
        "quantity('1Gi').isGreaterThan(quantity('500M')) && quantity('1500m').compareTo(quantity('1.5')) == 0",
        "cidr('10.0.0.0/8').containsIP('10.2.3.4') && ip('::1').family() == 6 && !isIP('x')",
        "url('https://example.com:80/path?x').getHostname() == 'example.com' && isURL('/x') && !isURL('x y')",
        "['b', 'a', 'c'].max() == 'c' && [1, 2, 3].sum() == 6 && [1, 2].isSorted()",
        "'a,b,c'.split(',').join('-') == 'a-b-c' && 'abc'.substring(1, 2) == 'b' && 'x'.replace('x', 'yy') == 'yy'",
        "sets.contains(self.hosts, ['a']) && sets.equivalent([1, 1], [1]) && math.greatest(1, 4, 2) == 4",
        "type(1) == int && string(1.5) == '1.5' && int('7') == 7 && dyn(1) == 1.0 && 1u + 2u == 3u",
        "!format.dns1123Label().validate('web').hasValue() && format.dns1123Label().validate('W').value().size() == 1",
        "cel.bind(x, self.replicas, x * x) == 9",
        "self.rules.all(i, r, i < 2 && r.name != '')",
        "'%s has %d'.format([self.name, 3]) == 'web-1 has 3'",
        "r'\\d' == '\\\\d' && \"\"\"a\"b\"\"\" == 'a\"b' && 0x1F == 31 && -9223372036854775808 < 0",
        "(self.replicas > 1 ? 'many' : 'one') == 'many' // a comment",
        "[1, 2, 3].transformList(i, v, i > 0, v * i) == [2, 6] && ['a'].transformList(i, v, v) == ['a']",
        "{'a': 1, 'b': 2}.transformMap(k, v, v > 1, v * 2) == {'b': 4} && ['x'].transformMap(i, v, v) == {0: 'x'}",
        "{'a': 'b'}.transformMapEntry(k, v, {v: k}) == {'b': 'a'} && [1, 2].transformMapEntry(i, v, v > 1, {v: i}) == {2: 1}",
        "{'a': 1}.all(k, v, k == 'a' && v == 1) && [3].exists(i, v, i == 0 && v == 3) && [1, 1].existsOne(i, v, i == 1)",
        "semver('1.2.3').isLessThan(semver('1.10.0')) && isSemver('1.0.0-rc.1+b') && !isSemver('v1.0') && isSemver('v1.0', true)",
        "semver('1.2.3').major() == 1 && semver('v01.2', true).minor() == 2 && semver('1.0.0').compareTo(semver('1.0.0+b')) == 0",
        "semver('1.0.0-a') < semver('1.0.0') && semver('1.0.0').patch() == 0 && string(semver('1.0.0')) == '1.0.0'",
        "url('https://a/b?x=1&y=2&x=3%204').getQuery()['x'] == ['1', '3 4'] && url('https://a').getQuery().size() == 0",
        "format.named('labelValue').value().validate('a b').hasValue() && !format.named('nope').hasValue()",
        "!format.uuid().validate('0a1b2c3d-0000-4000-8000-00000000000f').hasValue() && format.uuid().validate('x').hasValue()",
        "!format.byte().validate('aGk=').hasValue() && !format.dns1123LabelPrefix().validate('web-').hasValue()",
        "!format.qualifiedName().validate('example.com/name').hasValue() && format.qualifiedName().validate('-a').hasValue()",
        "jsonpatch.escapeKey('a/b~c') == 'a~1b~0c'",
        "Object{spec: Object.spec{replicas: 3}, ?status: optional.none()} == {'spec': {'replicas': 3}}",
        "JSONPatch{op: 'add', path: '/a', value: [1]}.value == [1] && [1].map(ip, ip.size() == 1 || true) == [true]",
        "isQuantity('1Gi') && quantity('2').asInteger() == 2 && quantity('1').add(quantity('1')).compareTo(quantity('2')) == 0",
        "sets.intersects([1, 2], [2, 3]) && ['a', 'b'].indexOf('b') == 1 && 'a1b2'.findAll('[0-9]') == ['1', '2']",
        "ip('127.0.0.1').isLoopback() && cidr('10.0.0.0/8').prefixLength() == 8 && ip.isCanonical('::1')",
        "{'a': 1, 'b': [2]} == {'b': [2], 'a': 1} && {'a': 1}['a'] == 1",
    ] {
        assert_eq!(run(text).as_deref(), Ok("true"), "{text}");
    }
}

#[test]
fn errors_are_words() {
    check("self.missing > 1", expect!["error: no such key: missing"]);
    check("self.hosts[7]", expect!["error: index out of bounds: 7"]);
    check("self.name + 1", expect!["error: no such overload: Add(string, int)"]);
    check("1 / 0", expect!["error: division by zero"]);
    check("9223372036854775807 + 1", expect!["error: integer overflow"]);
    check("self.name.frobnicate()", expect!["error: Syntax error: undeclared reference to 'frobnicate'"]);
    check("self.", expect!["error: Syntax error: a name is missing"]);
    check("1 +", expect!["error: Syntax error: mismatched input '<EOF>'"]);
    check("nobody", expect!["error: undeclared reference to 'nobody'"]);
}

#[test]
fn what_costs_too_much_ends() {
    let doubling = format!("[self.name]{}", ".map(x, x + x)".repeat(60));
    assert_eq!(run(&doubling), Err("call cost exceeds limit".to_owned()));
    let nested = "[1,2,3,4,5,6,7,8].all(a, [1,2,3,4,5,6,7,8].all(b, [1,2,3,4,5,6,7,8].all(c, [1,2,3,4,5,6,7,8].all(d, \
        [1,2,3,4,5,6,7,8].all(e, [1,2,3,4,5,6,7,8].all(f, a + b + c + d + e + f > 0))))))";
    assert_eq!(run(nested), Err("call cost exceeds limit".to_owned()));
    assert!(run(&"(".repeat(10_000)).is_err());
    assert!(run(&"!".repeat(4_999)).is_err());
    assert!(run(&format!("1{}", "+1".repeat(2_000))).unwrap_err().contains("nested at most"));
    assert!(run(&format!("self{}", ".a".repeat(2_000))).unwrap_err().contains("nested at most"));
    assert!(run(&"[".repeat(3_000)).is_err());
    assert!(run("'a'.matches('(a{1000}){1000}')").is_err());
}

#[test]
fn dots_in_front_do_not_pile_up() {
    assert_eq!(run(".self.replicas == 3"), Ok("true".to_owned()));
    for text in ["..self".to_owned(), ". (1)".to_owned(), format!("{}self", ". ".repeat(4_990))] {
        assert!(run(&text).unwrap_err().contains("mismatched input"), "{text:.20}");
    }
}

#[test]
fn deep_expressions_are_evaluated_and_dropped() {
    let deep = [
        format!("1{}", " + 1".repeat(190)),
        format!("[1]{}.size()", ".map(x, x)".repeat(190)),
        format!("{}1{}", "[".repeat(47), "]".repeat(47)),
        format!("{}1{}", "cel.bind(x, 1, ".repeat(47), ")".repeat(47)),
        format!("'a'{}", ".trim()".repeat(190)),
    ];
    for text in deep {
        assert!(run(&text).is_ok(), "{text:.40}");
    }
}

#[test]
fn patterns_share_what_they_may_take() {
    let mut patterns = Patterns::new(150 << 10);
    let text = |from: usize, to: usize| {
        let terms: Vec<String> = (from..to).map(|n| format!("'a'.matches('a{n}[a-z]{{300}}')")).collect();
        terms.join(" || ")
    };
    assert!(Program::compile(&text(0, 2), &mut patterns).is_ok());
    let refused = Program::compile(&text(1, 40), &mut patterns).unwrap_err().to_string();
    assert!(refused.contains("at most 153600 bytes together"), "{refused}");
    let same = "'a'.matches('^b$') || ".repeat(300) + "true";
    assert!(Program::compile(&same, &mut Patterns::new(5 << 10)).is_ok());
}

#[derive(Debug)]
struct Doors;

impl Host for Doors {
    fn type_name(&self) -> &'static str {
        "test.Doors"
    }

    fn field(&self, name: &str) -> Option<Value<'static>> {
        (name == "count").then_some(Value::Int(2))
    }

    fn call(&self, name: &str, arguments: &[&str]) -> Option<Value<'static>> {
        match (name, arguments) {
            ("allowed", []) => Some(Value::Bool(true)),
            ("check", [verb]) => Some(Value::Bool(*verb == "open")),
            _ => None,
        }
    }
}

fn compiled(text: &str) -> Program {
    Program::compile(text, &mut Patterns::new(1 << 20)).unwrap()
}

#[test]
fn hosts_have_fields_and_methods_of_their_own() {
    let doors = || Value::Host(std::rc::Rc::new(Doors));
    let program = compiled("doors.count == 2 && doors.allowed() && doors.check('open') && !has(doors.nothing)");
    assert_eq!(program.evaluate(&[("doors", doors())], &Budget::new(100_000)).unwrap().as_bool(), Some(true));
    let program = compiled("doors.check('a', 'b')");
    let error = program.evaluate(&[("doors", doors())], &Budget::new(100_000)).unwrap_err();
    assert_eq!(error.to_string(), "no such overload: check(test.Doors, string, string)");
}

#[test]
fn lazy_variables_are_evaluated_once_and_only_when_they_are_read() {
    let (one, two, bad) = (compiled("[1, 2, 3].map(x, x * 2)"), compiled("variables.one.sum()"), compiled("1 / 0"));
    let early = compiled("variables.late");
    let mut scope = Scope::default();
    scope.define("one", &one);
    scope.define("bad", &bad);
    scope.define("early", &early);
    scope.define("two", &two);
    scope.define("late", &two);
    let (budget, reads) = (Budget::new(1_000), compiled("variables.two + variables.two"));
    let whole = scope.evaluate(&reads, &budget).unwrap();
    assert_eq!(whole.as_int(), Some(24));
    let first = 1_000 - budget.left();
    scope.evaluate(&reads, &budget).unwrap();
    assert!(1_000 - budget.left() - first < first / 2, "the second time costs less");
    let short = compiled("true || variables.bad == 1");
    assert_eq!(scope.evaluate(&short, &budget).unwrap().as_bool(), Some(true));
    let fails = [("variables.bad", "division by zero"), ("variables.early", "no such key: late")];
    for (text, expected) in fails {
        let program = compiled(text);
        let mut scope = Scope::default();
        scope.define("bad", &bad);
        scope.define("early", &early);
        scope.define("late", &one);
        assert_eq!(scope.evaluate(&program, &budget).unwrap_err().to_string(), expected, "{text}");
    }
}

#[test]
fn values_become_json() {
    let program = compiled("{'a': [1, 'x', null, 2.5, true], 'b': quantity('1Gi'), 'c': Object.spec{x: {}}}");
    let budget = Budget::new(1_000);
    let value = program.evaluate(&[], &budget).unwrap();
    let expected = json!({ "a": [1, "x", null, 2.5, true], "b": "1Gi", "c": { "x": {} } });
    assert_eq!(value.to_json(&budget).unwrap(), expected);
    let program = compiled("optional.of(1)");
    assert!(program.evaluate(&[], &budget).unwrap().to_json(&budget).is_err());
    let program = compiled(&format!("[1]{}", ".map(x, [x, x])".repeat(5)));
    assert!(program.evaluate(&[], &budget).unwrap().to_json(&Budget::new(10)).is_err());
}

struct Deployment;

impl Fields for Deployment {
    fn field(&self, of: &str, name: &str) -> Option<Type> {
        Some(match (of, name) {
            ("Deployment", "spec") => Type::Object("Spec".to_owned()),
            ("Spec", "replicas") => Type::Int,
            ("Spec", "labels") => Type::map(Type::Text),
            ("Spec", "names") => Type::list(Type::Text),
            ("Spec", "any" | "a-b") => Type::Dyn,
            _ => return None,
        })
    }
}

fn typed(text: &str) -> String {
    let variables = [("object", Type::Object("Deployment".to_owned())), ("any", Type::Dyn)];
    match compiled(text).check(text, &variables, &Deployment) {
        Ok(ty) => ty.to_string(),
        Err(why) => why,
    }
}

#[test]
fn what_cannot_be_right_for_any_value_is_told() {
    for (text, expected) in [
        ("object.spec.replicas > 1", "bool"),
        ("object.spec.replicas", "int"),
        ("object.spec.labels['a'] + 'x'", "string"),
        ("object.spec.names.all(n, n.startsWith('a'))", "bool"),
        ("object.spec.names.map(n, n.size())", "list(int)"),
        ("object.spec.labels.all(k, k == 'a') && has(object.spec.any)", "bool"),
        ("any.whatever.replicas > 'x' || any == 1", "bool"),
        ("object.spec.any + 1 == 'x'", "bool"),
        ("object.spec.a__dash__b == 1 && object.spec != null && object.spec.replicas < 1.5", "bool"),
        ("cel.bind(x, object.spec.replicas, x + 1)", "int"),
        ("object.spec.?replicas.orValue(1)", "int"),
        ("any.exists(x, x > 1) ? 'a' : 'b'", "string"),
        ("Object{spec: Object.spec{names: [Object.spec.names{a: 1}]}}", "Object"),
        ("[JSONPatch{op: 'add', path: '/a'}]", "list(JSONPatch)"),
        ("authorizer", "undeclared reference to 'authorizer' (in container '')"),
        ("object.spec.replica > 1", "undefined field 'replica'"),
        ("object.spec.replicas > '1'", "found no matching overload for '_>_' applied to '(int, string)'"),
        ("'got ' + object.spec.replicas", "found no matching overload for '_+_' applied to '(string, int)'"),
        ("object.spec.replicas == 'a'", "found no matching overload for '_==_' applied to '(int, string)'"),
        (
            "object.spec.replicas.startsWith('a')",
            "found no matching overload for 'startsWith' applied to 'int.(string)'",
        ),
        ("object.spec.replicas.x", "type 'int' does not support field selection"),
        ("object.spec.replicas && true", "found no matching overload for '_&&_' applied to '(int, bool)'"),
        ("1 in object.spec.names", "found no matching overload for '@in' applied to '(int, list(string))'"),
        ("1 + 1.5", "found no matching overload for '_+_' applied to '(int, double)'"),
        (
            "Object{spec: Object.status{}}",
            "expected type of field 'spec' is 'Object.spec' but provided type is 'Object.status'",
        ),
        ("JSONPatch{operation: 'add'}", "undefined field 'operation'"),
    ] {
        let found = typed(text);
        let first = found.lines().next().unwrap_or_default();
        assert!(first == expected || first.ends_with(&format!(": {expected}")), "{text}: {found}");
    }
}

#[test]
fn problems_are_shown_where_they_are() {
    expect![[r"
        ERROR: <input>:1:7: undefined field 'replicas'
         | object.replicas > 1
         | ......^"]]
    .assert_eq(&typed("object.replicas > 1"));
    expect![[r"
        ERROR: <input>:2:4: undeclared reference to 'nobody' (in container '')
         | && nobody && x
         | ...^
        ERROR: <input>:2:14: undeclared reference to 'x' (in container '')
         | && nobody && x
         | .............^"]]
    .assert_eq(&typed("true\n&& nobody && x"));
}

/// What an expression over two long texts and a pattern costs.
fn cost(text: &str) -> u64 {
    let long = "x".repeat(80_000);
    let object = json!({"one": format!("{long}a"), "other": format!("{long}b")});
    let mut patterns = Patterns::new(1 << 20);
    let program = Program::compile(text, &mut patterns).unwrap();
    let budget = Budget::new(10_000_000);
    program.evaluate(&[("self", Value::from_json(&object))], &budget).unwrap();
    10_000_000 - budget.left()
}

#[test]
fn long_texts_cost_their_length() {
    for text in ["isSorted()", "min()", "max()", "sort()"] {
        let found = cost(&format!("[self.one, self.other, self.one].{text}"));
        assert!(found > 20_000, "{text} costs {found}");
    }
    for name in ["math.greatest", "math.least"] {
        let found = cost(&format!("{name}([self.one, self.other, self.one])"));
        assert!(found > 20_000, "{name} costs {found}");
    }
    let pieces = cost("self.one.split('').size() > 0");
    assert!(pieces > 300_000, "split costs {pieces}");
    let (small, large) = (cost("self.one.matches('a$')"), cost("self.one.matches('[a-f]{300}$')"));
    assert!(large > 3 * small, "{small} and {large}");
    let made = cost("self.one.matches('[a-f]' + '{300}$')");
    assert!(made > large, "{large} and {made}");
}

#[test]
fn values_without_order_are_not_sorted() {
    check("[3, 1.5, 2].sort()[0]", expect!["1.5"]);
    check("['b', 'a'].sort()[0]", expect!["a"]);
    check("[1.0, double('NaN'), 2.0].sort()", expect!["error: no such overload: sort(list)"]);
    check("[1, 'a'].sort()", expect!["error: no such overload: sort(list)"]);
    check("[{}, {}].sort()", expect!["error: no such overload: sort(list)"]);
}

proptest! {
    #[test]
    fn never_panics(text in "[a-z0-9 .()\\[\\]{}'\"+*/!&|<>=?:,%-]{0,60}") {
        let _ = run(&text);
    }

    #[test]
    fn never_panics_on_likely_text(parts in proptest::collection::vec(prop_oneof![
        Just("self"), Just(".hosts"), Just(".all(x, "), Just(")"), Just("x"), Just(" && "), Just("[0]"), Just(".?a"),
        Just("1"), Just(" + "), Just("'é'"), Just(".substring(1)"), Just(".name"), Just(" in "), Just("has("), Just("-"),
        Just(".size()"), Just("["), Just("]"), Just(" ? "), Just(" : "), Just(".split('')"), Just(".rules"), Just(".replace('', self.name)"),
    ], 0..12)) {
        let _ = run(&parts.concat());
    }
}

#[test]
fn names_that_nothing_declares_are_found() {
    let check = |text: &str, expected: Option<&str>| {
        let program = Program::compile(text, &mut Patterns::new(1 << 20)).unwrap();
        assert_eq!(program.undeclared(&["object", "request"]), expected, "{text}");
    };
    check("object.a == request.b && string(1) == '1' && type(1) == int", None);
    check("object.list.all(i, i > 0) && cel.bind(x, object.a, x == x) && math.greatest(1, 2) == 2", None);
    check("object.?a.optMap(m, m + 1).orValue(0) == 1 && {'a': [object]}['a'].size() == 1", None);
    check("object.list.all(i, i > 0) && i == 1", Some("i"));
    check("[params.x]", Some("params"));
    check("object.list.map(i, i > limit, i) == []", Some("limit"));
}
