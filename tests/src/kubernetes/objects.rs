//! A client that sees objects as JSON.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use kube::{
    Client, Config, Error,
    api::{
        Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch,
        PatchParams, PostParams, Preconditions,
    },
    config::{KubeConfigOptions, Kubeconfig},
    core::Status,
};
use serde_json::{Value, json};

/// Who changes what tests change.
const MANAGER: &str = "tests";

/// Objects of a cluster, as one account sees them. They are named by `apiVersion`, `kind` and
/// `metadata`, and have no namespace where that is empty.
#[derive(Clone)]
pub struct Objects(Client);

impl Objects {
    /// Connects as a kubeconfig says.
    pub async fn connect(kubeconfig: Kubeconfig) -> Result<Self> {
        let options = KubeConfigOptions::default();
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        // A test is to see what the server says.
        config.default_retry = false;
        Ok(Self(Client::try_from(config)?))
    }

    /// Connects as a file says.
    pub async fn connect_by(kubeconfig: &Path) -> Result<Self> {
        Self::connect(Kubeconfig::read_from(kubeconfig)?).await
    }

    /// Objects of a kind, in a namespace or in all.
    pub fn api(&self, api_version: &str, kind: &str, namespace: &str) -> Api<DynamicObject> {
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        match namespace {
            "" => Api::all_with(self.0.clone(), &resource),
            namespace => Api::namespaced_with(self.0.clone(), namespace, &resource),
        }
    }

    fn place(&self, object: &Value) -> Result<(Api<DynamicObject>, String)> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        let api_version = text("/apiVersion").context("an object without apiVersion")?;
        let kind = text("/kind").context("an object without kind")?;
        let name = text("/metadata/name").unwrap_or_default();
        let namespace = text("/metadata/namespace").unwrap_or_default();
        Ok((self.api(api_version, kind, namespace), name.to_owned()))
    }

    /// One object.
    pub async fn get(
        &self,
        api_version: &str,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Value> {
        let found = self.api(api_version, kind, namespace).get(name).await;
        seen(found, "get", name)
    }

    /// All of a kind.
    pub async fn list(&self, api_version: &str, kind: &str, namespace: &str) -> Result<Vec<Value>> {
        let found = self
            .api(api_version, kind, namespace)
            .list(&ListParams::default())
            .await;
        let items = found
            .with_context(|| format!("cannot list {kind}"))?
            .items
            .into_iter();
        items
            .map(|item| {
                let mut item = serde_json::to_value(item)?;
                item["apiVersion"] = json!(api_version);
                item["kind"] = json!(kind);
                Ok(item)
            })
            .collect()
    }

    /// Creates an object.
    pub async fn create(&self, object: &Value) -> Result<Value> {
        let (api, name) = self.place(object)?;
        let typed = serde_json::from_value(object.clone())?;
        seen(
            api.create(&PostParams::default(), &typed).await,
            "create",
            &name,
        )
    }

    /// Applies an object as one who takes over what others own of it.
    pub async fn apply(&self, object: &Value) -> Result<Value> {
        let (api, name) = self.place(object)?;
        let params = PatchParams::apply(MANAGER).force();
        seen(
            api.patch(&name, &params, &Patch::Apply(object)).await,
            "apply",
            &name,
        )
    }

    /// Changes an object by a merge patch that names it.
    pub async fn merge(&self, patch: &Value) -> Result<Value> {
        let (api, name) = self.place(patch)?;
        seen(
            api.patch(&name, &merging(), &Patch::Merge(patch)).await,
            "change",
            &name,
        )
    }

    /// Changes the status of an object likewise.
    pub async fn merge_status(&self, patch: &Value) -> Result<Value> {
        let (api, name) = self.place(patch)?;
        let changed = api
            .patch_status(&name, &merging(), &Patch::Merge(patch))
            .await;
        seen(changed, "change the status of", &name)
    }

    /// Creates what is below an object, such as a token.
    pub async fn create_below(
        &self,
        object: &Value,
        subresource: &str,
        what: &Value,
    ) -> Result<Value> {
        let (api, name) = self.place(object)?;
        let params = PostParams::default();
        let created = api
            .create_subresource(subresource, &name, &params, what)
            .await;
        created.with_context(|| format!("cannot create the {subresource} of {name}"))
    }

    /// Deletes an object, this very one if it has a uid, and what it owns; after so many seconds, or
    /// those that it asks for.
    pub async fn delete(&self, object: &Value, grace: Option<u32>) -> Result<()> {
        let (api, name) = self.place(object)?;
        let uid = object.pointer("/metadata/uid").and_then(Value::as_str);
        let params = DeleteParams {
            grace_period_seconds: grace,
            preconditions: uid.map(|uid| Preconditions {
                uid: Some(uid.to_owned()),
                resource_version: None,
            }),
            ..DeleteParams::background()
        };
        let deleted = api.delete(&name, &params).await;
        deleted.with_context(|| format!("cannot delete {name}"))?;
        Ok(())
    }
}

/// The `Status` of a request that must be refused.
pub fn refused<T>(answer: Result<T, Error>) -> Result<Status> {
    match answer {
        Err(Error::Api(status)) => Ok(*status),
        Err(error) => Err(error.into()),
        Ok(_) => bail!("a request that must be refused was not"),
    }
}

fn merging() -> PatchParams {
    PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

fn seen(answer: Result<DynamicObject, Error>, verb: &str, name: &str) -> Result<Value> {
    let object = answer.with_context(|| format!("cannot {verb} {name}"))?;
    Ok(serde_json::to_value(object)?)
}
