//! `monitorctl container` and `monitorctl image`.

use std::{ffi::OsString, os::unix::ffi::OsStringExt as _};

use monitor_api::{
    json,
    v1::{
        Container, ContainersRequest, ImageContentsRequest, ImageEntry, ImageUsageRequest,
        ImagesRequest, alert,
    },
};

use super::{
    Client, Failure, Output,
    output::{Cell, or_dash, safe, safe_bytes, short, time},
};
use crate::containers::meant;

async fn all_containers(client: &mut Client) -> Result<Vec<Container>, Failure> {
    let mut stream = client.containers(ContainersRequest {}).await?.into_inner();
    let mut containers = Vec::new();
    while let Some(message) = stream.message().await? {
        containers.extend(message.container);
    }
    Ok(containers)
}

/// `container list`.
pub(super) async fn containers(
    client: &mut Client,
    output: &mut Output<'_>,
) -> Result<(), Failure> {
    let containers = all_containers(client).await?;
    if output.is_json() {
        for container in &containers {
            output.json(&json::container(container))?;
        }
        return Ok(());
    }
    let rows = containers.iter().map(|container| {
        let who = container.container.clone().unwrap_or_default();
        let image = container.image.clone().unwrap_or_default();
        vec![
            who.runtime_namespace.clone(),
            short(&who.id),
            or_dash(&who.name).to_owned(),
            who.pod.as_ref().map_or_else(|| "-".to_owned(), pod),
            or_dash(&image.identity).to_owned(),
            short(or_dash(&image.manifest_digest)),
            or_dash(&image.reference).to_owned(),
            container
                .pid
                .map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            or_dash(&container.coverage).to_owned(),
            container.findings.to_string(),
        ]
    });
    output.table(
        &[
            "NAMESPACE",
            "CONTAINER",
            "NAME",
            "POD",
            "IDENTITY",
            "DIGEST",
            "REFERENCE",
            "PID",
            "COVERAGE",
            "FINDINGS",
        ],
        rows.collect(),
    )?;
    Ok(())
}

fn pod(pod: &alert::Pod) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}

/// `container show`.
pub(super) async fn container(
    client: &mut Client,
    wanted: &str,
    output: &mut Output<'_>,
) -> Result<(), Failure> {
    let containers = all_containers(client).await?;
    let container = choose(&containers, wanted)?;
    if output.is_json() {
        return Ok(output.json(&json::container(container))?);
    }
    let who = container.container.clone().unwrap_or_default();
    let image = container.image.clone().unwrap_or_default();
    let mut facts = vec![
        ("container", who.id),
        ("name", who.name),
        ("namespace", who.runtime_namespace),
        ("kind", who.kind),
        ("pod", who.pod.as_ref().map(pod).unwrap_or_default()),
        (
            "workload",
            who.workload
                .map(|it| format!("{}/{}", it.kind, it.name))
                .unwrap_or_default(),
        ),
        ("reference", image.reference),
        (
            "digest pinned",
            if container.digest_pinned { "yes" } else { "no" }.to_owned(),
        ),
        ("identity", image.identity),
        ("manifest digest", image.manifest_digest),
        ("index digest", image.index_digest),
        ("config digest", image.config_digest),
        ("chain id", image.chain_id),
        ("evidence", image.evidence),
    ];
    for candidate in image.candidates {
        facts.push(("candidate", candidate.manifest_digest));
    }
    facts.extend([
        (
            "pid",
            container.pid.map(|pid| pid.to_string()).unwrap_or_default(),
        ),
        ("started", time(container.started_at.as_ref())),
        ("coverage", container.coverage.clone()),
        ("findings", container.findings.to_string()),
    ]);
    print_facts(&facts, output)
}

/// Prints what is known, a fact a line.
pub(super) fn print_facts(
    facts: &[(&str, String)],
    output: &mut Output<'_>,
) -> Result<(), Failure> {
    let width = facts
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or_default();
    for (name, fact) in facts {
        output.line(&[Cell::new(name, width), Cell::new(or_dash(&safe(fact)), 0)])?;
    }
    Ok(())
}

/// The one container that `wanted` means: by its whole id, else by name or the beginning of an id.
fn choose<'a>(containers: &'a [Container], wanted: &str) -> Result<&'a Container, Failure> {
    let all: Vec<&Container> = containers.iter().collect();
    let found = meant(&all, wanted, |one| {
        let facts = one.container.as_ref()?;
        Some((&facts.id, &facts.name))
    });
    match found.as_slice() {
        [one] => Ok(one),
        [] => Err(Failure::Failed(format!(
            "no container {wanted:?} on this node; `monitorctl container list` lists them"
        ))),
        several => Err(Failure::Failed(format!(
            "{wanted:?} means {} containers; give more of the id",
            several.len()
        ))),
    }
}

/// `image list`.
pub(super) async fn images(client: &mut Client, output: &mut Output<'_>) -> Result<(), Failure> {
    let mut stream = client.images(ImagesRequest {}).await?.into_inner();
    let mut rows = Vec::new();
    while let Some(message) = stream.message().await? {
        let Some(image) = message.image else { continue };
        if output.is_json() {
            output.json(&json::image(&image))?;
            continue;
        }
        rows.push(vec![
            short(or_dash(&image.manifest_digest)),
            or_dash(&image.state).to_owned(),
            or_dash(&image.evidence).to_owned(),
            image.layers.len().to_string(),
            image.entries.to_string(),
            image.containers.to_string(),
            or_dash(&image.references.join(" ")).to_owned(),
            or_dash(&image.error).to_owned(),
        ]);
    }
    if !output.is_json() {
        output.table(
            &[
                "DIGEST",
                "STATE",
                "EVIDENCE",
                "LAYERS",
                "ENTRIES",
                "CONTAINERS",
                "REFERENCES",
                "ERROR",
            ],
            rows,
        )?;
    }
    Ok(())
}

/// `image usage`.
pub(super) async fn usage(client: &mut Client, output: &mut Output<'_>) -> Result<(), Failure> {
    let mut stream = client.image_usage(ImageUsageRequest {}).await?.into_inner();
    let mut rows = Vec::new();
    while let Some(usage) = stream.message().await? {
        if output.is_json() {
            output.json(&json::usage(&usage))?;
            continue;
        }
        rows.push(vec![
            short(or_dash(&usage.manifest_digest)),
            or_dash(&usage.node).to_owned(),
            usage.running.len().to_string(),
            usage.containers.to_string(),
            time(usage.first_seen.as_ref()),
            time(usage.last_seen.as_ref()),
            or_dash(&usage.references.join(" ")).to_owned(),
        ]);
    }
    if !output.is_json() {
        output.table(
            &[
                "DIGEST",
                "NODE",
                "RUNNING",
                "CONTAINERS",
                "FIRST SEEN",
                "LAST SEEN",
                "REFERENCES",
            ],
            rows,
        )?;
    }
    Ok(())
}

/// `image contents`.
pub(super) async fn contents(
    client: &mut Client,
    image: String,
    path: Option<OsString>,
    output: &mut Output<'_>,
) -> Result<(), Failure> {
    let path = path.map(OsString::into_vec).unwrap_or_default();
    let request = ImageContentsRequest { image, path };
    let mut stream = client.image_contents(request).await?.into_inner();
    while let Some(message) = stream.message().await? {
        for entry in &message.entries {
            if output.is_json() {
                output.json(&json::entry(entry))?;
            } else {
                print_entry(entry, output)?;
            }
        }
    }
    Ok(())
}

fn print_entry(entry: &ImageEntry, output: &mut Output<'_>) -> Result<(), Failure> {
    let mut path = safe_bytes(&entry.path);
    if !entry.link_target.is_empty() {
        path = format!("{path} -> {}", safe_bytes(&entry.link_target));
    }
    let is_file = entry.r#type == "file";
    let size = if is_file {
        entry.size.to_string()
    } else {
        "-".to_owned()
    };
    output.line(&[
        Cell::new(&safe(&entry.r#type), 9),
        Cell::new(&format!("{:04o}", entry.mode), 4),
        Cell::new(&format!("{}:{}", entry.uid, entry.gid), 9),
        Cell::new(&size, 10),
        Cell::new(or_dash(&short(&entry.sha256)), 12),
        Cell::new(&path, 0),
    ])?;
    Ok(())
}
