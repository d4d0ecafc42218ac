//! Server-side apply and merge patches of several managers in a row, beside a model so simple that it
//! is seen to be right: a value has owners; who applies another value must force it and is its only
//! owner then; what its last owner gives up goes.

#![expect(clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail};
use kube::{
    Error,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tests::kubernetes::cluster::Cluster;

/// Changes that are made.
const STEPS: u32 = 150;
const KEYS: [&str; 4] = ["a", "b", "c", "d"];
/// Who changes; the last by merge patches, the others by apply.
const MANAGERS: [&str; 4] = ["one", "two", "three", "editor"];

/// A change: what someone wants of each key.
#[derive(Debug)]
struct Step {
    manager: &'static str,
    force: bool,
    /// `None` for no word of it.
    wanted: BTreeMap<&'static str, Option<String>>,
}

impl Step {
    /// Looks random, and is the same in each run.
    fn make(step: u32) -> Result<Self> {
        let bytes = Sha256::digest(step.to_be_bytes());
        let mut bytes = bytes.iter().copied();
        let mut next = |below: u8| bytes.next().map(|byte| byte % below).context("no byte");
        let manager = MANAGERS.get(usize::from(next(4)?)).context("no manager")?;
        let force = next(3)? == 0;
        let mut wanted = BTreeMap::new();
        for key in KEYS {
            let value = next(4)?;
            wanted.insert(key, (value > 0).then(|| value.to_string()));
        }
        Ok(Self {
            manager,
            force,
            wanted,
        })
    }

    fn is_merge(&self) -> bool {
        self.manager == "editor"
    }
}

/// What is there, and whose it is.
#[derive(Debug, Default, PartialEq, Eq)]
struct Model(BTreeMap<&'static str, (String, BTreeSet<&'static str>)>);

impl Model {
    /// Makes a change, or says which keys of whom are in its way.
    fn change(&mut self, step: &Step) -> Result<(), BTreeSet<(String, String)>> {
        let mut conflicts = BTreeSet::new();
        for (key, wanted) in &step.wanted {
            if let (Some(wanted), Some((value, owners))) = (wanted, self.0.get(key))
                && value != wanted
                && !step.is_merge()
            {
                let others = owners.iter().filter(|owner| **owner != step.manager);
                conflicts.extend(others.map(|owner| (format!(".data.{key}"), (*owner).to_owned())));
            }
        }
        if !conflicts.is_empty() && !step.force {
            return Err(conflicts);
        }
        for (key, wanted) in &step.wanted {
            let own = BTreeSet::from([step.manager]);
            match (wanted, self.0.get_mut(key)) {
                (None, None) => {}
                (None, Some(_)) if step.is_merge() => {
                    self.0.remove(key);
                }
                (None, Some((_, owners))) => {
                    if owners.remove(step.manager) && owners.is_empty() {
                        self.0.remove(key);
                    }
                }
                (Some(wanted), Some((value, owners))) if value == wanted => {
                    if !step.is_merge() {
                        owners.insert(step.manager);
                    }
                }
                (Some(wanted), _) => {
                    self.0.insert(key, (wanted.clone(), own));
                }
            }
        }
        Ok(())
    }

    /// What an object of the API says of the same.
    fn read(object: &Value) -> Self {
        let mut model = Self::default();
        for key in KEYS {
            let Some(value) = object
                .pointer(&format!("/data/{key}"))
                .and_then(Value::as_str)
            else {
                continue;
            };
            let entries = object
                .pointer("/metadata/managedFields")
                .and_then(Value::as_array);
            let owners = entries.into_iter().flatten().filter(|entry| {
                entry
                    .pointer(&format!("/fieldsV1/f:data/f:{key}"))
                    .is_some()
            });
            let owners = owners.filter_map(|entry| entry.get("manager")?.as_str());
            let owners = MANAGERS
                .into_iter()
                .filter(|manager| owners.clone().any(|owner| owner == *manager));
            model.0.insert(key, (value.to_owned(), owners.collect()));
        }
        model
    }
}

#[test]
fn changes_of_several_managers_come_to_what_a_simple_model_says() -> Result<()> {
    let cluster = Cluster::start()?;
    let api = cluster
        .objects()
        .api("v1", "ConfigMap", cluster.namespace());
    let mut object = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "shared", "namespace": cluster.namespace(), "labels": {"a": "b"}},
    });
    cluster.create(&object)?;
    let mut model = Model::default();
    let mut refused = 0;
    for number in 0..STEPS {
        let step = Step::make(number)?;
        let mut data = json!({});
        for (key, wanted) in &step.wanted {
            match wanted {
                Some(value) => data[*key] = json!(value),
                None if step.is_merge() => data[*key] = Value::Null,
                None => {}
            }
        }
        object["data"] = data;
        let params = PatchParams {
            field_manager: Some(step.manager.to_owned()),
            force: step.force && !step.is_merge(),
            ..PatchParams::default()
        };
        let patch = if step.is_merge() {
            Patch::Merge(&object)
        } else {
            Patch::Apply(&object)
        };
        let expect = model.change(&step);
        match (cluster.run(api.patch("shared", &params, &patch)), expect) {
            (Ok(found), Ok(())) => {
                let found = Model::read(&serde_json::to_value(found)?);
                assert_eq!(found, model, "after step {number}: {step:?}");
            }
            (Err(Error::Api(status)), Err(expect)) => {
                refused += 1;
                assert_eq!(status.code, 409, "step {number}: {step:?}: {status}");
                let causes = status.details.context("no details")?.causes.into_iter();
                let found: BTreeSet<(String, String)> = causes
                    .map(|cause| {
                        let manager = cause
                            .message
                            .split('"')
                            .nth(1)
                            .unwrap_or_default()
                            .to_owned();
                        (cause.field, manager)
                    })
                    .collect();
                assert_eq!(found, expect, "step {number}: {step:?}");
            }
            (found, expect) => bail!("step {number}: {step:?}: {found:?} instead of {expect:?}"),
        }
    }
    // Else it would have tried little.
    assert!(
        refused > 10 && refused < STEPS / 2,
        "{refused} of {STEPS} refused"
    );
    Ok(())
}
