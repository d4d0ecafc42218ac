//! A cluster for tests: an API server of one's own with what stands in for its controllers and
//! kubelets, or the real one that `MONITOR_KUBECONFIG` names.

#![expect(
    clippy::indexing_slicing,
    reason = "fields are set by their names, of values that are objects or nothing yet"
)]

pub mod cluster;
mod fields;
pub mod http;
mod metadata;
pub mod objects;
mod paths;
mod rbac;
mod refused;
mod resources;
mod schema;
mod selectors;
pub mod standin;
mod store;
mod verbs;
mod watch;
