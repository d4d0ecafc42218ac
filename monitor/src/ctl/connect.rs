//! Reaches the daemon.

use std::{fs, path::Path, time::Duration};

use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::{Failure, args::Tls};
use crate::api::Address;

/// Longest time to connect, TLS included.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);

/// Connects to the daemon at `address`.
///
/// # Errors
///
/// A file for TLS is missing or cannot be read, or nobody answers there whom the files trust.
pub(super) async fn connect(address: &Address, tls: &Tls) -> Result<Channel, Failure> {
    let mut endpoint = Endpoint::from_shared(address.to_string())
        .map_err(|error| Failure::Usage(format!("address {address}: {error}")))?
        .connect_timeout(CONNECT_TIME_MAX);
    if let Address::Https(_) = address {
        endpoint = endpoint
            .tls_config(config(tls)?)
            .map_err(|error| Failure::Usage(format!("the files for TLS: {error}")))?;
    }
    let connected = endpoint.connect().await;
    connected.map_err(|error| Failure::connect(address, &error))
}

fn config(tls: &Tls) -> Result<ClientTlsConfig, Failure> {
    let (Some(ca), Some(cert), Some(key)) = (&tls.ca, &tls.cert, &tls.key) else {
        return Err(Failure::Usage(
            "an address with https needs --ca, --cert and --key".to_owned(),
        ));
    };
    Ok(ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read(ca)?))
        .identity(Identity::from_pem(read(cert)?, read(key)?)))
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path)
        .map_err(|error| Failure::Usage(format!("cannot read {} for TLS: {error}", path.display())))
}
