use tandem_api::{ApiError, Object};

use super::Request;
use crate::core::Core;

/// Refuses what adds external addresses to a Service, unless the cluster allows it: with them, who may write Services
/// could take the traffic of any address (CVE-2020-8554).
pub(super) fn refuse(
    core: &Core,
    request: &Request<'_>,
    service: &Object,
    old: Option<&Object>,
) -> Result<(), ApiError> {
    let path = ["spec", "externalIPs"];
    let had = old.map(|old| old.array_at(&path)).unwrap_or_default();
    if core.settings.external_ips || service.array_at(&path).iter().all(|address| had.contains(address)) {
        return Ok(());
    }
    let why = "Use of external IPs is denied by admission control: the cluster setting externalIPs allows it";
    Err(request.forbidden(service.name(), why))
}
