//! The cluster that a test speaks to.

use std::{
    env, fs,
    future::Future,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use kube::config::{AuthInfo, Kubeconfig};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::{self, Runtime};

use super::{http::Server, metadata::random, objects::Objects};
use crate::poll::{PATIENCE, until};

/// Names the kubeconfig of a real cluster, as one who may do everything there.
pub const KUBECONFIG: &str = "MONITOR_KUBECONFIG";

/// A cluster with a namespace of the test's own, which is removed in the end.
pub struct Cluster {
    objects: Objects,
    runtime: Runtime,
    namespace: String,
    admin: Kubeconfig,
    directory: TempDir,
    server: Option<Server>,
}

impl Cluster {
    /// The cluster that [`KUBECONFIG`] names, else a server of the test's own.
    pub fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let (server, admin) = match env::var_os(KUBECONFIG) {
            Some(file) => (None, Kubeconfig::read_from(file)?),
            None => {
                let server = Server::start()?;
                let admin = kubeconfig(&server)?;
                (Some(server), admin)
            }
        };
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let objects = runtime.block_on(Objects::connect(admin.clone()))?;
        let cluster = Self {
            objects,
            runtime,
            namespace: format!("monitord-test-{}", random()),
            admin,
            directory,
            server,
        };
        write(&cluster.kubeconfig(), &cluster.admin)?;
        cluster.create(&cluster.own_namespace())?;
        Ok(cluster)
    }

    fn own_namespace(&self) -> Value {
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}})
    }

    /// The test's own namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// A Deployment of two containers in the test's own namespace, the first of this image.
    pub fn web(&self, image: &str) -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "web", "namespace": self.namespace(), "labels": {"app": "web"}},
            "spec": {
                "replicas": 2,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [
                        {"name": "web", "image": image, "env": [{"name": "A", "value": "1"}]},
                        {"name": "log", "image": "example.invalid/log:1"},
                    ]},
                },
            },
        })
    }

    /// The server, for what cannot be asked of a real one; `None` there.
    pub fn server(&self) -> Option<&Server> {
        self.server.as_ref()
    }

    /// Objects as one sees them who may do everything.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// The kubeconfig of who may do everything.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("admin.kubeconfig")
    }

    /// Waits for what a client does.
    pub fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// See [`Objects::get`].
    pub fn get(&self, api_version: &str, kind: &str, namespace: &str, name: &str) -> Result<Value> {
        self.run(self.objects.get(api_version, kind, namespace, name))
    }

    /// See [`Objects::list`].
    pub fn list(&self, api_version: &str, kind: &str, namespace: &str) -> Result<Vec<Value>> {
        self.run(self.objects.list(api_version, kind, namespace))
    }

    /// See [`Objects::create`].
    pub fn create(&self, object: &Value) -> Result<Value> {
        self.run(self.objects.create(object))
    }

    /// See [`Objects::merge`].
    pub fn merge(&self, patch: &Value) -> Result<Value> {
        self.run(self.objects.merge(patch))
    }

    /// See [`Objects::merge_status`].
    pub fn merge_status(&self, patch: &Value) -> Result<Value> {
        self.run(self.objects.merge_status(patch))
    }

    /// See [`Objects::delete`].
    pub fn delete(&self, object: &Value) -> Result<()> {
        self.run(self.objects.delete(object, None))
    }

    /// See [`Objects::apply`]; waits until the resources of a definition are served.
    pub fn apply(&self, object: &Value) -> Result<Value> {
        let applied = self.run(self.objects.apply(object))?;
        if applied
            .get("kind")
            .is_some_and(|kind| kind == "CustomResourceDefinition")
        {
            self.wait_served(object)?;
        }
        Ok(applied)
    }

    /// Applies each document of a YAML file. What is not in the test's own namespace stays on a real
    /// cluster, where other tests need it as well.
    pub fn apply_file(&self, path: &Path) -> Result<()> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(&text).with_context(|| path.display().to_string())?;
        ensure!(!documents.is_empty(), "{} has no document", path.display());
        let mut documents = documents.iter();
        documents.try_for_each(|document| self.apply(document).map(drop))
    }

    /// A kubeconfig of a `ServiceAccount`, with a token that was asked for.
    pub fn account_kubeconfig(&self, namespace: &str, account: &str) -> Result<PathBuf> {
        let object = json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": account, "namespace": namespace},
        });
        let asked = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"expirationSeconds": 3600},
        });
        let answer = self.run(self.objects.create_below(&object, "token", &asked))?;
        let token = answer
            .pointer("/status/token")
            .context("an answer without a token")?;
        let user: AuthInfo = serde_json::from_value(json!({"token": token}))?;
        let mut config = self.admin.clone();
        for it in &mut config.auth_infos {
            it.auth_info = Some(user.clone());
        }
        let path = self
            .directory
            .path()
            .join(format!("{namespace}-{account}.kubeconfig"));
        write(&path, &config)?;
        Ok(path)
    }

    /// Objects as such an account sees them.
    pub fn objects_of(&self, kubeconfig: &Path) -> Result<Objects> {
        self.run(Objects::connect_by(kubeconfig))
    }

    fn wait_served(&self, definition: &Value) -> Result<()> {
        let text = |pointer: &str| {
            let text = definition.pointer(pointer).and_then(Value::as_str);
            text.with_context(|| format!("a definition without {pointer}"))
        };
        let version = text("/spec/versions/0/name")?;
        let api_version = format!("{}/{version}", text("/spec/group")?);
        let kind = text("/spec/names/kind")?;
        let what = format!("{kind} to be served");
        until(&what, PATIENCE, || {
            self.list(&api_version, kind, "").map(drop)
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A server of the test's own goes as a whole.
        if self.server.is_none()
            && let Err(error) = self.delete(&self.own_namespace())
        {
            eprintln!("{error:#}");
        }
    }
}

fn kubeconfig(server: &Server) -> Result<Kubeconfig> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "tests",
        "clusters": [{"name": "tests", "cluster": {"server": server.url()}}],
        "users": [{"name": "tests", "user": {"token": server.admin_token()}}],
        "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
    }))?)
}

/// JSON is YAML too.
fn write(path: &Path, config: &Kubeconfig) -> Result<()> {
    let written = fs::write(path, serde_json::to_vec(config)?);
    written.with_context(|| format!("writing {}", path.display()))
}
