//! ResourceQuota: no more than what a namespace may have. What an object uses is charged by the command that writes the
//! object: both happen or none does, and neither when a quota has changed since it was read.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::Duration,
};

use jiff::Timestamp;
use tandem_api::{
    ApiError, Object,
    quota::{self, Amounts, Counted},
};
use tandem_store::{Consistency, Expect, Op};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

use super::{Operation, Request};
use crate::{
    core::Core,
    objects::{self, Objects},
};

/// Namespaces share this many turns.
const TURNS: usize = 64;
/// How long to wait for a turn. Without one a charge may have to be made again, no more.
const TURN_WAIT_MAX: Duration = Duration::from_secs(2);

/// Whose turn it is to charge the quotas of a namespace. Writers that go one after the other need not try again and
/// again; against those of other members each charge names the revision that it was made from.
pub(crate) struct Turns([Semaphore; TURNS]);

impl Default for Turns {
    fn default() -> Turns {
        Turns(std::array::from_fn(|_| Semaphore::new(1)))
    }
}

/// The right to charge, until it is dropped.
pub(crate) type Turn<'a> = SemaphorePermit<'a>;

impl Turns {
    async fn of(&self, namespace: &str) -> Option<Turn<'_>> {
        let mut hasher = DefaultHasher::new();
        namespace.hash(&mut hasher);
        let turns = u64::try_from(TURNS).unwrap_or(1);
        let place = usize::try_from(hasher.finish() % turns).unwrap_or_default();
        timeout(TURN_WAIT_MAX, self.0[place].acquire()).await.ok()?.ok()
    }
}

/// What is written to the quotas, and the turn in which.
#[derive(Debug, Default)]
pub(super) struct Charge<'c> {
    pub(super) ops: Vec<Op>,
    pub(super) turn: Option<Turn<'c>>,
}

/// What a write asks of the quotas of its namespace.
struct Claim<'a> {
    counted: Counted<'a>,
    object: &'a Object,
    old: Option<&'a Object>,
    now: Timestamp,
}

/// What the quotas are charged for a write.
pub(super) async fn charge<'c>(
    core: &'c Core,
    request: &Request<'_>,
    object: &Object,
    old: Option<&Object>,
) -> Result<Charge<'c>, ApiError> {
    let counted = Counted { group: &request.def.group, resource: &request.def.plural };
    let resizes = request.resizes();
    let concerned = match request.operation {
        Operation::Create => true,
        Operation::Update => counted.may_grow() || resizes,
        Operation::Delete | Operation::Connect => false,
    };
    let namespace = request.namespace.filter(|_| request.def.is_namespaced());
    let Some(namespace) = namespace.filter(|_| concerned && (request.subresource.is_empty() || resizes)) else {
        return Ok(Charge::default());
    };
    let def = core.row("", "v1", "resourcequotas")?;
    let claim = Claim { counted, object, old, now: core.clock.now() };
    // From memory: where there are no quotas, or none that count this, nothing else is asked.
    let known = core.objects.all(&def, Some(namespace), Consistency::Any).await?;
    if matches!(charged(&known, &claim), Ok(charged) if charged.is_empty()) {
        return Ok(Charge::default());
    }
    let turn = core.turns.of(namespace).await;
    let mut ops = Vec::new();
    let quotas = core.objects.all(&def, Some(namespace), Consistency::Linearizable).await?;
    for quota in charged(&quotas, &claim).map_err(|why| request.forbidden(object.name(), why))? {
        let key = Objects::key(&def, Some(namespace), quota.name());
        let expect = Expect::At(quota.revision().unwrap_or_default());
        ops.push(Op::Put { key, value: objects::encode(&def, &quota)?, expect });
    }
    Ok(Charge { ops, turn })
}

/// The quotas that change when the write happens, as they are then; why it may not happen.
fn charged(quotas: &[Object], claim: &Claim<'_>) -> Result<Vec<Object>, String> {
    let Claim { counted, object, old, now } = *claim;
    let mut growth: Option<Amounts> = None;
    let mut charged = Vec::new();
    for quota in quotas {
        let hard = quota::amounts(quota.at(&["status", "hard"]));
        let limited = || hard.keys().map(String::as_str).filter(|name| Counted::by(name) == Some(counted));
        if limited().next().is_none() || !counted.is_in_scope(quota, object) {
            continue;
        }
        let name = quota.name();
        if counted == (Counted { group: "", resource: "pods" })
            && let Some(missing) = quota::missing(limited(), object)
        {
            return Err(format!("failed quota: {name}: {missing}"));
        }
        let used = quota::amounts(quota.at(&["status", "used"]));
        if limited().any(|name| !used.contains_key(name)) {
            let names: Vec<&str> = limited().collect();
            return Err(format!("status unknown for quota: {name}, resources: {}", names.join(",")));
        }
        let growth = growth.get_or_insert_with(|| growing(&counted.usage(object, now), counted, old, now));
        let mut asked = growth.clone();
        asked.retain(|name, _| hard.contains_key(name));
        if asked.is_empty() {
            continue;
        }
        let mut after = used.clone();
        quota::add(&mut after, &asked);
        let over: Vec<&String> = asked.keys().filter(|name| after.get(*name) > hard.get(*name)).collect();
        if !over.is_empty() {
            let part = |amounts: &Amounts| {
                let part = over.iter().filter_map(|name| Some(((*name).clone(), *amounts.get(*name)?)));
                quota::show(&part.collect())
            };
            let (asked, used, hard) = (part(&asked), part(&used), part(&hard));
            return Err(format!("exceeded quota: {name}, requested: {asked}, used: {used}, limited: {hard}"));
        }
        let mut quota = quota.clone();
        quota.set(&["status", "used"], quota::to_value(&after));
        charged.push(quota);
    }
    Ok(charged)
}

/// What is used more than before. What is used less the controller finds.
fn growing(now_used: &Amounts, counted: Counted<'_>, old: Option<&Object>, now: Timestamp) -> Amounts {
    let before = old.map(|old| counted.usage(old, now)).unwrap_or_default();
    let more = now_used.iter().map(|(name, amount)| {
        let growth = before.get(name).map_or(*amount, |before| amount.minus(*before));
        (name.clone(), growth)
    });
    more.filter(|(_, growth)| !growth.is_zero() && !growth.is_negative()).collect()
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::{Value, json};

    use super::*;

    fn quota(name: &str, hard: Value, used: Value, spec: Value) -> Object {
        let status = json!({ "hard": hard, "used": used });
        Object::from_value(json!({ "metadata": { "name": name }, "spec": spec, "status": status })).unwrap()
    }

    fn check(quotas: &[Object], resource: &str, object: &Value, old: Option<&Value>, expect: Expect) {
        let object = Object::from_value(object.clone()).unwrap();
        let old = old.map(|old| Object::from_value(old.clone()).unwrap());
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let counted = Counted { group: "", resource };
        let claim = Claim { counted, object: &object, old: old.as_ref(), now };
        let shown = match charged(quotas, &claim) {
            Err(why) => why,
            Ok(quotas) => {
                let line = |quota: &Object| {
                    let used = quota::amounts(quota.at(&["status", "used"]));
                    format!("{}: {}", quota.name(), quota::show(&used))
                };
                quotas.iter().map(line).collect::<Vec<_>>().join("\n")
            }
        };
        expect.assert_eq(&shown);
    }

    fn pod(resources: &Value) -> Value {
        let containers = json!([{ "name": "app", "resources": resources }]);
        json!({ "metadata": { "name": "p" }, "spec": { "containers": containers }, "status": { "qosClass": "Burstable" } })
    }

    #[test]
    fn what_is_counted_is_charged() {
        let hard = json!({ "pods": "2", "requests.cpu": "1", "configmaps": "3" });
        let used = json!({ "pods": "1", "requests.cpu": "500m", "configmaps": "3" });
        let quotas = [
            quota("a", hard, used, json!({})),
            quota("maps", json!({ "count/configmaps": "9" }), json!({ "count/configmaps": "1" }), json!({})),
            quota("ended", json!({ "pods": "0" }), json!({ "pods": "0" }), json!({ "scopes": ["Terminating"] })),
        ];
        let asks = |cpu: &str| pod(&json!({ "requests": { "cpu": cpu } }));
        check(&quotas, "pods", &asks("200m"), None, expect!["a: configmaps=3,pods=2,requests.cpu=700m"]);
        check(
            &quotas,
            "pods",
            &asks("600m"),
            None,
            expect![
                "exceeded quota: a, requested: requests.cpu=600m, used: requests.cpu=500m, limited: requests.cpu=1"
            ],
        );
        check(&quotas, "pods", &pod(&json!({})), None, expect!["failed quota: a: must specify requests.cpu for: app"]);
        check(
            &quotas,
            "configmaps",
            &json!({}),
            None,
            expect!["exceeded quota: a, requested: configmaps=1, used: configmaps=3, limited: configmaps=3"],
        );
        check(&quotas, "secrets", &json!({}), None, expect![""]);
    }

    #[test]
    fn nothing_is_charged_before_the_usage_is_known() {
        let fresh = quota("new", json!({}), json!({}), json!({ "hard": { "pods": "1" } }));
        check(&[fresh], "pods", &pod(&json!({})), None, expect![""]);
        let half = quota("half", json!({ "pods": "1", "count/pods": "1" }), json!({ "pods": "0" }), json!({}));
        check(
            &[half],
            "pods",
            &pod(&json!({})),
            None,
            expect!["status unknown for quota: half, resources: count/pods,pods"],
        );
    }

    #[test]
    fn updates_are_charged_what_they_use_more() {
        let hard = json!({ "services": "1", "services.nodeports": "1" });
        let quotas = [quota("a", hard, json!({ "services": "1", "services.nodeports": "0" }), json!({}))];
        let service = |kind: &str, ports: usize| json!({ "metadata": { "name": "s" }, "spec": { "type": kind, "ports": vec![json!({ "port": 80 }); ports] } });
        let plain = service("ClusterIP", 1);
        check(
            &quotas,
            "services",
            &service("NodePort", 1),
            Some(&plain),
            expect!["a: services=1,services.nodeports=1"],
        );
        check(
            &quotas,
            "services",
            &service("NodePort", 2),
            Some(&plain),
            expect![
                "exceeded quota: a, requested: services.nodeports=2, used: services.nodeports=0, limited: services.nodeports=1"
            ],
        );
        check(&quotas, "services", &plain, Some(&service("NodePort", 2)), expect![""]);
    }
}
