//! The calls that ask for kept alerts: pages, and one of them.

use std::sync::Arc;

use jiff::Timestamp;
use monitor_api::v1::{
    Alert, GetAlertRequest, GetAlertResponse, ListAlertsRequest, ListAlertsResponse,
    alerts_response::{Expired, Gap},
    get_alert_request,
};
use prost::Message as _;
use tokio::time::timeout;
use tonic::Status;
use ulid::Ulid;

use super::{
    REQUEST_TIME_MAX,
    alerts::{SCANNED_AT_ONCE, filter, wants},
};
use crate::alerts::{AlertLog, AlertReader, Delivery, Next, Start, build::timestamp};

/// Alerts or records of a page when none are asked for.
const PAGE_SIZE: u32 = 100;

/// Most alerts or records of a page.
const PAGE_SIZE_MAX: u32 = 1000;

/// Most bytes of a page's alerts: with one more alert it is below
/// [`monitor_api::MESSAGE_BYTES_MAX`].
const PAGE_BYTES_MAX: usize = 2 << 20;

/// Most alerts that are looked at for one page.
const SCANNED_MAX: usize = 10_000;

/// How many a page is to have, of which so many are asked for.
pub(super) fn size(asked: u32) -> Result<usize, Status> {
    let size = match asked {
        0 => PAGE_SIZE,
        1..=PAGE_SIZE_MAX => asked,
        _ => {
            return Err(Status::invalid_argument(format!(
                "page_size is {asked}; at most {PAGE_SIZE_MAX} are given"
            )));
        }
    };
    Ok(usize::try_from(size).unwrap_or(usize::MAX))
}

/// A page of alerts.
pub(super) async fn list(
    log: &AlertLog,
    request: &ListAlertsRequest,
) -> Result<ListAlertsResponse, Status> {
    let size = size(request.page_size)?;
    let mut filter = filter(&request.filter)?;
    let mut reader = first_of_page(log, request)?;
    let mut page = ListAlertsResponse::default();
    let mut bytes = 0;
    for scanned in 1.. {
        match reader.try_next().await {
            None => return Ok(page),
            Some(Next::Alert(alert)) => {
                if wants(&mut filter, &alert)? {
                    bytes += alert.encoded_len();
                    page.alerts.push(Arc::unwrap_or_clone(alert));
                }
            }
            Some(Next::Expired { from, before }) => page.expired.push(Expired { from, before }),
            Some(Next::Gap {
                from,
                before,
                reason,
            }) => page.gaps.push(Gap {
                from,
                before,
                reason: reason.name().to_owned(),
            }),
        }
        if page.alerts.len() >= size || bytes >= PAGE_BYTES_MAX || scanned >= SCANNED_MAX {
            break;
        }
        if scanned.is_multiple_of(SCANNED_AT_ONCE) {
            tokio::task::yield_now().await;
        }
    }
    page.next_page_token = format!("{}/{}", log.journal(), reader.position());
    Ok(page)
}

fn first_of_page(log: &AlertLog, request: &ListAlertsRequest) -> Result<AlertReader, Status> {
    if request.page_token.is_empty() {
        let delivery = Delivery::Written;
        return match request.from {
            Some(time) => Ok(log.subscribe_at(time, delivery)),
            None => log
                .subscribe(Start::Oldest, delivery)
                .map_err(|error| Status::out_of_range(error.to_string())),
        };
    }
    let (journal, cursor) = request
        .page_token
        .split_once('/')
        .and_then(|(journal, cursor)| Some((journal, cursor.parse().ok()?)))
        .ok_or_else(|| Status::invalid_argument("page_token is none that an earlier page gave"))?;
    if journal != log.journal() {
        return Err(Status::failed_precondition(format!(
            "the journal is {} now; list again from the first page",
            log.journal()
        )));
    }
    log.subscribe(Start::After(cursor), Delivery::Written)
        .map_err(|error| Status::out_of_range(error.to_string()))
}

/// One alert.
pub(super) async fn get(
    log: &AlertLog,
    request: &GetAlertRequest,
) -> Result<GetAlertResponse, Status> {
    let found = match &request.alert {
        Some(get_alert_request::Alert::Cursor(cursor)) => by_cursor(log, *cursor).await,
        Some(get_alert_request::Alert::Id(id)) => {
            let id = Ulid::from_string(id)
                .map_err(|_| Status::invalid_argument("id is no ULID of 26 characters"))?;
            timeout(REQUEST_TIME_MAX, by_id(log, id))
                .await
                .map_err(|_| Status::deadline_exceeded("the journal is too long to look through"))?
        }
        None => return Err(Status::invalid_argument("give a cursor or an id")),
    };
    match found {
        Some(alert) => Ok(GetAlertResponse {
            alert: Some(Arc::unwrap_or_clone(alert)),
        }),
        None => Err(Status::not_found(
            "no such alert is kept; it may have expired, or be of another journal",
        )),
    }
}

async fn by_cursor(log: &AlertLog, cursor: u64) -> Option<Arc<Alert>> {
    let before = Start::After(cursor.checked_sub(1)?);
    let mut reader = log.subscribe(before, Delivery::Written).ok()?;
    match reader.try_next().await? {
        Next::Alert(alert) => Some(alert),
        Next::Expired { .. } | Next::Gap { .. } => None,
    }
}

/// The last revision, which is in memory or among all that was written since the id was made.
async fn by_id(log: &AlertLog, id: Ulid) -> Option<Arc<Alert>> {
    let text = id.to_string();
    if let Some(alert) = log
        .recent()
        .into_iter()
        .rev()
        .find(|alert| alert.id == text)
    {
        return Some(alert);
    }
    let made = i64::try_from(id.timestamp_ms()).ok();
    let made = Timestamp::from_millisecond(made?).ok()?;
    let mut reader = log.subscribe_at(timestamp(made), Delivery::Written);
    let mut found = None;
    let mut scanned = 0_usize;
    while let Some(next) = reader.try_next().await {
        if let Next::Alert(alert) = next
            && alert.id == text
        {
            found = Some(alert);
        }
        scanned += 1;
        if scanned.is_multiple_of(SCANNED_AT_ONCE) {
            tokio::task::yield_now().await;
        }
    }
    found
}
