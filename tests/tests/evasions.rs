//! Every way to run code that an image does not account for, see `tests::evasions`.

use std::{
    env, fs,
    sync::{Mutex, PoisonError},
};

use anyhow::{Result, anyhow, ensure};
use tests::{
    evasions::{
        self, Outcome,
        document::{self, Cells},
    },
    require, skip,
};

/// Set to write the document instead of comparing it.
const RENEW: &str = "MONITOR_RENEW_DOCUMENTS";

/// The techniques are carried out once for all tests here.
fn outcomes() -> Result<Vec<Outcome>> {
    static OUTCOMES: Mutex<Option<Result<Vec<Outcome>, String>>> = Mutex::new(None);
    let mut outcomes = OUTCOMES.lock().unwrap_or_else(PoisonError::into_inner);
    outcomes
        .get_or_insert_with(|| evasions::run("runc").map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(|error| anyhow!(error))
}

#[test]
fn every_technique_is_judged_as_the_contract_says() -> Result<()> {
    require!(Root, Containerd, Busybox, Python, Btf, UserNamespaces);
    let outcomes = outcomes()?;
    let failures: Vec<String> = outcomes
        .iter()
        .filter_map(|outcome| {
            let failure = outcome.failure.as_ref()?;
            Some(format!("{}: {failure}", outcome.technique.name))
        })
        .collect();
    ensure!(
        failures.is_empty(),
        "{} of {} techniques:\n{}",
        failures.len(),
        outcomes.len(),
        failures.join("\n")
    );
    Ok(())
}

#[test]
fn the_document_says_what_came_of_them() -> Result<()> {
    require!(Root, Containerd, Busybox, Python, Btf, UserNamespaces);
    let outcomes = outcomes()?;
    let cells = outcomes
        .iter()
        .map(|outcome| (outcome.technique.name, outcome.cell.as_str()));
    let kernel = evasions::kernel()?;
    let path = document::path();
    if env::var_os(RENEW).is_some() {
        let old = fs::read_to_string(&path).unwrap_or_default();
        fs::write(path, document::renewed(&old, &kernel, cells))?;
        return Ok(());
    }
    let document = document::read(&path)?;
    if !Cells::read(&document).columns().contains(&kernel.as_str()) {
        let reason = format!("{} tells of no kernel {kernel}", path.display());
        skip::record(module_path!(), &reason);
        return Ok(());
    }
    ensure!(
        document::renewed(&document, &kernel, cells) == document,
        "{}",
        document::stale(&path)
    );
    Ok(())
}
