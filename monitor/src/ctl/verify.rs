//! `monitorctl container verify` and `monitorctl image verify`.

use std::io::{self, IsTerminal as _, Write as _};

use monitor_api::{
    json,
    v1::{
        Difference, VerifyContainerRequest, VerifyImageRequest,
        verify_container_response::{Begun, Executed, Progress, Response, Verified},
    },
};

use super::{
    Client, Failure, Output,
    output::{Cell, or_dash, safe, safe_bytes, short},
};

/// `container verify`.
pub(super) async fn container(
    client: &mut Client,
    container: String,
    output: &mut Output<'_>,
) -> Result<(), Failure> {
    let Compared {
        begun, verified, ..
    } = compare(client, container, |difference| {
        if output.is_json() {
            Ok(output.json(&json::difference(difference))?)
        } else {
            print(difference, output)
        }
    })
    .await?;
    conclude(&begun, &verified, output)
}

/// What came of a comparison beside the differences.
pub(super) struct Compared {
    pub(super) begun: Box<Begun>,
    pub(super) executed: Executed,
    pub(super) verified: Verified,
}

/// Has a container compared with its image, and tells how far that is. Gives the differences as
/// they come.
pub(super) async fn compare(
    client: &mut Client,
    container: String,
    mut differs: impl FnMut(&Difference) -> Result<(), Failure>,
) -> Result<Compared, Failure> {
    let request = VerifyContainerRequest { container };
    let mut stream = client.verify_container(request).await?.into_inner();
    let mut bar = Bar::new();
    let mut begun: Box<Begun> = Box::default();
    let mut executed = Executed::default();
    while let Some(message) = stream.message().await? {
        match message.response {
            Some(Response::Begun(first)) => begun = first,
            Some(Response::Executed(told)) => executed = told,
            Some(Response::Difference(difference)) => {
                bar.clear();
                differs(&difference)?;
            }
            Some(Response::Progress(progress)) => bar.show(progress, begun.entries),
            Some(Response::Verified(verified)) => {
                bar.clear();
                return Ok(Compared {
                    begun,
                    executed,
                    verified,
                });
            }
            // Of a newer daemon.
            None => {}
        }
    }
    bar.clear();
    Err(Failure::Failed(
        "the comparison ended before everything was compared; look at the daemon's log".to_owned(),
    ))
}

fn print(difference: &Difference, output: &mut Output<'_>) -> Result<(), Failure> {
    let mut path = safe_bytes(&difference.path);
    if !difference.details.is_empty() {
        path = format!("{path}  ({})", safe(&difference.details));
    }
    let kind = match difference.r#type.as_str() {
        "" => &difference.expected_type,
        kind => kind,
    };
    output.line(&[
        Cell::new(&safe(&difference.verdict), 16),
        Cell::new(&safe(kind), 9),
        Cell::new(or_dash(&short(&difference.expected_sha256)), 12),
        Cell::new(or_dash(&short(&difference.seen_sha256)), 12),
        Cell::new(&path, 0),
    ])?;
    Ok(())
}

fn conclude(begun: &Begun, verified: &Verified, output: &mut Output<'_>) -> Result<(), Failure> {
    if output.is_json() {
        return Ok(output.json(&json::verified(begun, verified))?);
    }
    let image = begun.image.clone().unwrap_or_default();
    let mut counts: Vec<_> = verified.differences.iter().collect();
    counts.sort_unstable();
    let counts: Vec<String> = counts
        .into_iter()
        .map(|(verdict, count)| format!("{count} {}", safe(verdict)))
        .collect();
    let counts = if counts.is_empty() {
        "no difference".to_owned()
    } else {
        counts.join(", ")
    };
    let said = format!(
        "{} paths and {} MiB compared with image {} ({}, {}): {counts}",
        verified.paths,
        verified.bytes >> 20,
        short(or_dash(&image.manifest_digest)),
        safe(&image.identity),
        safe(or_dash(&image.evidence)),
    );
    output.line(&[Cell::new(&said, 0)])?;
    Ok(())
}

/// How far it is, on standard error if that is a terminal.
struct Bar {
    is_terminal: bool,
    is_shown: bool,
}

impl Bar {
    fn new() -> Self {
        Self {
            is_terminal: io::stderr().is_terminal(),
            is_shown: false,
        }
    }

    fn show(&mut self, progress: Progress, entries: u64) {
        if self.is_terminal {
            // A terminal that is gone is told by the next line on standard output.
            let _ = write!(
                io::stderr(),
                "\r\u{1b}[K{} of about {entries} paths, {} MiB",
                progress.paths,
                progress.bytes >> 20
            );
            self.is_shown = true;
        }
    }

    fn clear(&mut self) {
        if self.is_shown {
            let _ = write!(io::stderr(), "\r\u{1b}[K");
            self.is_shown = false;
        }
    }
}

/// `image verify`.
pub(super) async fn image(
    client: &mut Client,
    image: String,
    output: &mut Output<'_>,
) -> Result<(), Failure> {
    let request = VerifyImageRequest {
        image: image.clone(),
    };
    let mut stream = client.verify_image(request).await?.into_inner();
    let mut unverified = 0;
    while let Some(blob) = stream.message().await? {
        if blob.state != "verified" {
            unverified += 1;
        }
        if output.is_json() {
            output.json(&json::blob(&blob))?;
            continue;
        }
        output.line(&[
            Cell::new(&safe(&blob.state), 8),
            Cell::new(&safe(&blob.r#type), 8),
            Cell::new(&safe(&blob.digest), 71),
            Cell::new(&safe(&blob.error), 0),
        ])?;
    }
    match unverified {
        0 => Ok(()),
        count => Err(Failure::Failed(format!(
            "{count} blobs of {image:?} are not verified; pull the image again"
        ))),
    }
}
