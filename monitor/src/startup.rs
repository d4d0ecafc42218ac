//! What the daemon of a node and the controller of a cluster begin with: a state directory of their own,
//! the journal and the audit log in it, and who may call.

use std::{
    fs::{DirBuilder, File, Permissions},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
    sync::Arc,
};

use anyhow::Context as _;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use tokio::task::spawn_blocking;

use crate::{
    alerts::{AlertLog, Retention},
    api::{Roles, Security, Tls, TlsFiles},
    audit::Audit,
};

/// Two daemons on one state directory would overwrite each other's files.
pub(crate) fn lock(state: &Path) -> anyhow::Result<Flock<File>> {
    // For root alone: whoever can open the lock can hold it.
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state)
        .and_then(|()| std::fs::set_permissions(state, Permissions::from_mode(0o700)))
        .with_context(|| format!("cannot create the state directory {}", state.display()))?;
    let path = state.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        Errno::EAGAIN => anyhow::anyhow!("the state directory {} is in use by another monitord; stop it, or give another directory as state", state.display()),
        error => anyhow::anyhow!("cannot lock {}: {error}", path.display()),
    })
}

/// Opens the journal in a state directory.
///
/// # Errors
///
/// Its threads cannot be started.
pub(crate) async fn open_log(state: &Path, retention: Retention) -> anyhow::Result<AlertLog> {
    let directory = state.join("journal");
    let opened = spawn_blocking(move || AlertLog::open(&directory, retention)).await;
    opened
        .context("cannot open the journal")?
        .context("cannot start the journal's threads")
}

/// Opens the audit log in a state directory.
///
/// # Errors
///
/// Its thread cannot be started.
pub(crate) async fn open_audit(state: &Path) -> anyhow::Result<Audit> {
    let directory = state.join("audit");
    let opened = spawn_blocking(move || Audit::start(&directory)).await;
    opened
        .context("cannot open the audit log")?
        .context("cannot start the audit log's thread")
}

/// What addresses with TLS are served by; `None` without certificates.
///
/// # Errors
///
/// They cannot be read.
pub(crate) fn security(
    tls: Option<&TlsFiles>,
    roles: &Roles,
) -> anyhow::Result<Option<Arc<Security>>> {
    let Some(files) = tls else { return Ok(None) };
    let security = Security {
        tls: Tls::load(files)?,
        roles: roles.clone(),
    };
    Ok(Some(Arc::new(security)))
}
