//! Watches: the changes of objects as they come.

use std::{convert::Infallible, mem, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    Response,
    body::Frame,
    header::{CONTENT_TYPE, HeaderValue},
};
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    http::Body,
    refused::Refused,
    selectors::Selector,
    store::{Change, Key, Store},
    verbs::Request,
};

/// What someone watches.
pub(super) struct Watch {
    key: Key,
    selector: Selector,
    /// The version that was told last.
    at: u64,
    end: Instant,
    first: Vec<String>,
}

fn line(what: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": what, "object": object}))
}

impl Watch {
    /// A watch that lasts no longer than `time_max`.
    ///
    /// # Errors
    ///
    /// A selector that is none.
    pub(super) fn new(
        store: &Store,
        request: &Request<'_>,
        time_max: Duration,
    ) -> Result<Self, Refused> {
        let number = |name: &str| request.query.get(name).and_then(|it| it.parse().ok());
        let time = number("timeoutSeconds").map_or(time_max, Duration::from_secs);
        let from = number("resourceVersion").filter(|version| *version > 0);
        let key = request.place.key.clone();
        let selector = request.selector()?;
        // Who does not say from where is told first what is there.
        let mut first = Vec::new();
        if from.is_none() {
            let found = store.list(&key.resource, &key.namespace);
            let found = found.filter(|(_, value)| selector.fits(value));
            first.extend(found.map(|(_, value)| line("ADDED", value)));
        }
        Ok(Self {
            key,
            selector,
            at: from.unwrap_or_else(|| store.version()),
            end: Instant::now() + time.min(time_max),
            first,
        })
    }

    /// What a change is to who watches: an object that is there no more for them has gone.
    fn line(&self, change: &Change) -> Option<String> {
        let key = &change.key;
        let is_here = key.resource == self.key.resource
            && (self.key.namespace.is_empty() || key.namespace == self.key.namespace);
        if !is_here {
            return None;
        }
        let was = change
            .before
            .as_ref()
            .is_some_and(|before| self.selector.fits(before));
        let is = !change.is_removed && self.selector.fits(&change.object);
        let what = match (was, is) {
            (false, false) => return None,
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
        };
        Some(line(what, &change.object))
    }

    /// What happened since, and whether it is the end.
    fn next(&mut self, since: impl Fn(u64) -> Result<Vec<Change>, Refused>) -> (Vec<String>, bool) {
        match since(self.at) {
            Ok(changes) => {
                self.at = changes.last().map_or(self.at, |change| change.version);
                (
                    changes
                        .iter()
                        .filter_map(|change| self.line(change))
                        .collect(),
                    false,
                )
            }
            Err(refused) => (vec![line("ERROR", &refused.status())], true),
        }
    }
}

/// The changes as they come, each a line of JSON, from what happened `since` a version; looks again
/// when something has changed, and ends when it is cut.
pub(super) fn follow(
    mut watch: Watch,
    mut changed: watch::Receiver<u64>,
    mut cut: watch::Receiver<()>,
    since: impl Fn(u64) -> Result<Vec<Change>, Refused> + Send + 'static,
) -> Response<Body> {
    let (sender, receiver) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(16);
    tokio::spawn(async move {
        let mut lines = mem::take(&mut watch.first);
        let mut is_last = false;
        loop {
            for line in lines {
                let frame = Frame::data(Bytes::from(line));
                if sender.send(Ok(frame)).await.is_err() {
                    return;
                }
            }
            if is_last {
                return;
            }
            changed.mark_unchanged();
            (lines, is_last) = watch.next(&since);
            if lines.is_empty() {
                tokio::select! {
                    _ = changed.changed() => {}
                    _ = cut.changed() => return,
                    () = sender.closed() => return,
                    () = sleep_until(watch.end) => return,
                }
            }
        }
    });
    let mut response = Response::new(StreamBody::new(ReceiverStream::new(receiver)).boxed());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
