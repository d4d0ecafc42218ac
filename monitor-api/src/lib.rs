//! The gRPC API of `monitord`: protobuf package `monitor.v1`, client and server, and the same
//! facts as JSON.
//!
//! ```no_run
//! use monitor_api::v1::{
//!     AlertsRequest, alerts_request::{Start, start::Position}, alerts_response::Response,
//!     monitor_client::MonitorClient,
//! };
//!
//! # async fn read(last_cursor: u64) -> Result<(), Box<dyn std::error::Error>> {
//! let mut client = MonitorClient::connect("unix:///run/monitord/monitord.sock").await?;
//! let start = Start { position: Some(Position::After(last_cursor)), ..Start::default() };
//! let request = tokio_stream::once(AlertsRequest { start: Some(start), ..Default::default() });
//! let mut stream = client.alerts(request).await?.into_inner();
//! while let Some(message) = stream.message().await? {
//!     if let Some(Response::Alert(alert)) = message.response {
//!         println!("{}", monitor_api::json::line(&monitor_api::json::alert(&alert)));
//!     }
//! }
//! # Ok(())
//! # }
//! ```

pub mod bytes;
pub mod json;
pub mod ocsf;

/// Package `monitor.v1`, generated from `proto/monitor/v1`.
#[expect(
    unused_qualifications,
    clippy::allow_attributes_without_reason,
    reason = "generated; the proto files carry the documentation"
)]
pub mod v1 {
    tonic::include_proto!("monitor.v1");
}

/// Name and version of the alert's layout.
pub const SCHEMA: &str = "monitor.v1/1";

/// Most bytes of one gRPC message, either way.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// The descriptors of the package and of what it imports, encoded, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/monitor.v1.bin"));

impl v1::Severity {
    /// The contract's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Info => "info",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}
