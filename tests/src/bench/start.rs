//! What it takes a daemon that is started again to know images from its index.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use monitor_api::v1::{ImageContentsRequest, monitor_client::MonitorClient};
use serde_json::Value;
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use super::{figures::median, image::PACKAGES};
use crate::{
    containerd::Containerd,
    daemon::Daemon,
    image::{self, Config, Image},
    layer::Layer,
    poll::{PATIENCE, until},
};

const IMAGES: usize = 50;
const SECOND_STARTS: usize = 9;
/// Questions about images that are known, of which the middle one is taken off.
const KNOWN_TURNS: usize = 5;

pub(super) fn run() -> Result<()> {
    let containerd = Containerd::start()?;
    let references = images(&containerd)?;
    let directory = containerd.directory().join("start");
    let runtime = Runtime::new()?;
    let mut took = Vec::new();
    // The first start makes the index.
    for _ in 0..=SECOND_STARTS {
        let daemon = Daemon::start(&containerd.address(), &directory)?;
        until("the images to be listed", PATIENCE, || {
            let listed = Value::from(daemon.monitorctl(["image", "list"])?).to_string();
            let is_listed = |reference: &String| listed.contains(&format!("\"{reference}\""));
            ensure!(references.iter().all(is_listed), "{listed}");
            Ok(())
        })?;
        let address = format!("unix://{}", daemon.socket().display());
        let milliseconds = runtime.block_on(async {
            let mut client = MonitorClient::connect(address).await?;
            let unknown = ask(&mut client, &references).await?;
            let mut known = Vec::new();
            for _ in 0..KNOWN_TURNS {
                known.push(ask(&mut client, &references).await?);
            }
            anyhow::Ok([unknown, median(&mut known)])
        })?;
        took.push(milliseconds);
        daemon.stop()?;
    }
    let [first, _] = took.remove(0);
    let mut unknown: Vec<f64> = took.iter().map(|[unknown, _]| *unknown).collect();
    let mut known: Vec<f64> = took.iter().map(|[_, known]| *known).collect();
    println!(
        "{IMAGES} images of Debian packages: after a second start {:.1} ms to answer a question about each from the index, {:.1} ms when asked again (medians of {SECOND_STARTS}); {first:.0} ms to read them",
        median(&mut unknown),
        median(&mut known),
    );
    containerd.remove()
}

/// Images that share layers of packages, and have one of their own each.
fn images(containerd: &Containerd) -> Result<Vec<String>> {
    let mut references = Vec::new();
    for number in 0..IMAGES {
        let packages = PACKAGES.get(number % PACKAGES.len()).copied();
        let own = format!("image {number}");
        let layers = [
            image::debian_layer("base")?,
            image::debian_layer(packages.unwrap_or("nginx"))?,
            Layer::new().program("entrypoint", own.as_bytes()),
        ];
        let reference = format!("example.invalid/bench-start-{number}:1");
        containerd.import(&Image::build(&reference, &layers, &Config::default())?)?;
        references.push(reference);
    }
    Ok(references)
}

/// Milliseconds that one question about each image takes, one after the other.
async fn ask(client: &mut MonitorClient<Channel>, references: &[String]) -> Result<f64> {
    let began = Instant::now();
    for reference in references {
        let question = ImageContentsRequest {
            image: reference.clone(),
            path: b"/entrypoint".to_vec(),
        };
        let mut answer = client.image_contents(question).await?.into_inner();
        let answer = answer.message().await?.context("no answer")?;
        ensure!(answer.entries.len() == 1, "{answer:?}");
    }
    Ok(began.elapsed().as_secs_f64() * 1e3)
}
