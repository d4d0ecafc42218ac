//! `monitorctl profile`.

use std::{
    io::{self, Read as _},
    path::Path,
};

use monitor_api::{
    MESSAGE_BYTES_MAX,
    bytes::escape,
    json,
    v1::{
        FreezeProfileRequest, GetProfileRequest, ImportProfileRequest, LearnProfileRequest,
        ListProfilesRequest, Profile, profiles_client::ProfilesClient,
    },
};
use tonic::transport::Channel;

use super::{
    Failure, Output, answered,
    args::ProfileCommand,
    inventory,
    output::{Cell, or_dash, safe, short, time},
};
use crate::{
    files,
    profile::{self, DOCUMENT_BYTES_MAX, Document},
};

type Client = ProfilesClient<Channel>;

/// Where a profile is to be read from.
pub(super) enum Place<'a> {
    /// A file; `-` is standard input.
    File(&'a Path),
    /// The daemon, by the image's name.
    Image(&'a str),
}

impl<'a> Place<'a> {
    /// A file if there is one of that name, else an image.
    fn of(text: &'a str) -> Self {
        let path = Path::new(text);
        if text == "-" || path.is_file() {
            Self::File(path)
        } else {
            Self::Image(text)
        }
    }
}

/// Whether a command asks the daemon nothing.
pub(super) fn is_offline(command: &ProfileCommand) -> bool {
    let is_file = |text: &String| matches!(Place::of(text), Place::File(_));
    match command {
        ProfileCommand::Merge { .. } => true,
        ProfileCommand::Diff { old, new } => is_file(old) && is_file(new),
        _ => false,
    }
}

/// Carries out a command; `channel` is there unless it [`is_offline`].
pub(super) async fn run(
    channel: Option<Channel>,
    command: ProfileCommand,
    output: &mut Output<'_>,
) -> Result<(), Failure> {
    let mut client = channel.map(|channel| {
        ProfilesClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    });
    match command {
        ProfileCommand::Diff { old, new } => {
            let old = document(&mut client, &Place::of(&old)).await?;
            let new = document(&mut client, &Place::of(&new)).await?;
            difference(&old, &new, output)
        }
        ProfileCommand::Merge { files } => {
            let mut documents = files.iter().map(|path| read(path));
            let Some(first) = documents.next() else {
                return Err(Failure::Usage("name the files to merge".to_owned()));
            };
            let merged = documents.try_fold(first?, |merged, next| {
                profile::merge(&merged, &next?)
                    .map_err(|error| Failure::Refused(format!("cannot merge: {error}")))
            })?;
            print(&merged, output)
        }
        command => {
            let client = client.as_mut().ok_or_else(no_daemon)?;
            answered(ask(client, command, output)).await
        }
    }
}

async fn ask(
    client: &mut Client,
    command: ProfileCommand,
    output: &mut Output<'_>,
) -> Result<(), Failure> {
    let changed = match command {
        ProfileCommand::List => {
            let listed = client.list_profiles(ListProfilesRequest {}).await?;
            return list(&listed.into_inner().profiles, output);
        }
        ProfileCommand::Show { image } => {
            let profile = get(client, image).await?;
            return show(&profile, output);
        }
        ProfileCommand::Export { image } => {
            let profile = get(client, image).await?;
            return print(&parsed(&profile.document)?, output);
        }
        ProfileCommand::Import { file } => {
            // Here as well, so that the reason names the file.
            let document = read(&file)?.to_yaml();
            let request = ImportProfileRequest { document };
            client.import_profile(request).await?.into_inner().profile
        }
        ProfileCommand::Learn { image } => {
            let request = LearnProfileRequest { image };
            client.learn_profile(request).await?.into_inner().profile
        }
        ProfileCommand::Freeze { image } => {
            let request = FreezeProfileRequest { image };
            client.freeze_profile(request).await?.into_inner().profile
        }
        ProfileCommand::Diff { .. } | ProfileCommand::Merge { .. } => return Err(no_daemon()),
    };
    let changed = changed.unwrap_or_default();
    if output.is_json() {
        return Ok(output.json(&json::profile(&changed))?);
    }
    list(&[changed], output)
}

fn no_daemon() -> Failure {
    Failure::Failed("a defect of monitorctl: it did not connect".to_owned())
}

async fn get(client: &mut Client, image: String) -> Result<Profile, Failure> {
    let answer = client.get_profile(GetProfileRequest { image }).await?;
    let missing = || Failure::Failed("the daemon sent no profile".to_owned());
    answer.into_inner().profile.ok_or_else(missing)
}

async fn document(client: &mut Option<Client>, place: &Place<'_>) -> Result<Document, Failure> {
    match place {
        Place::File(path) => read(path),
        Place::Image(image) => {
            let client = client.as_mut().ok_or_else(no_daemon)?;
            let profile = answered(get(client, (*image).to_owned())).await?;
            parsed(&profile.document)
        }
    }
}

fn parsed(text: &str) -> Result<Document, Failure> {
    Document::parse(text).map_err(|error| {
        Failure::Failed(format!(
            "the daemon sent a profile that this monitorctl does not understand: {error}"
        ))
    })
}

fn read(path: &Path) -> Result<Document, Failure> {
    let failed = |why: String| Failure::Failed(format!("{}: {why}", path.display()));
    let text = if path == Path::new("-") {
        let mut text = String::new();
        let limit = u64::try_from(DOCUMENT_BYTES_MAX).unwrap_or(u64::MAX);
        let input = io::stdin().lock().take(limit.saturating_add(1));
        let read = { input }.read_to_string(&mut text);
        read.map(|_| text).map_err(|error| error.to_string())
    } else {
        files::read_text(path, DOCUMENT_BYTES_MAX)
    };
    let text = text.map_err(failed)?;
    Document::parse(&text).map_err(|error| failed(error.to_string()))
}

fn list(profiles: &[Profile], output: &mut Output<'_>) -> Result<(), Failure> {
    if output.is_json() {
        for profile in profiles {
            output.json(&json::profile(profile))?;
        }
        return Ok(());
    }
    let header = [
        "MANIFEST",
        "REFERENCE",
        "STATE",
        "FROM",
        "COMPLETE",
        "EXECUTABLES",
        "FILES",
        "PEERS",
        "RUNNING",
        "DEVIATIONS",
    ];
    let rows = profiles.iter().map(|profile| {
        vec![
            short(&profile.manifest_digest),
            or_dash(&profile.reference).to_owned(),
            profile.state.clone(),
            profile.source.clone(),
            if profile.complete { "yes" } else { "no" }.to_owned(),
            profile.executables.to_string(),
            profile.files.to_string(),
            (profile.peers + profile.sockets).to_string(),
            profile.running.to_string(),
            profile.deviations.to_string(),
        ]
    });
    Ok(output.table(&header, rows.collect())?)
}

fn show(profile: &Profile, output: &mut Output<'_>) -> Result<(), Failure> {
    let document = parsed(&profile.document)?;
    if output.is_json() {
        let mut said = json::profile(profile);
        if let Some(said) = said.as_object_mut() {
            said.insert("document".to_owned(), document.to_json());
        }
        return Ok(output.json(&said)?);
    }
    let mut facts = vec![
        ("manifest", profile.manifest_digest.clone()),
        ("reference", or_dash(&profile.reference).to_owned()),
        ("state", profile.state.clone()),
        ("from", profile.source.clone()),
        ("running", profile.running.to_string()),
        ("deviations", profile.deviations.to_string()),
    ];
    if !profile.frozen_by.is_empty() {
        let at = time(profile.frozen_at.as_ref());
        facts.push(("frozen", format!("{at} by {}", profile.frozen_by)));
    }
    facts.push(("complete", profile.complete.to_string()));
    facts.extend(profile.reasons.iter().map(|it| ("partial", it.clone())));
    inventory::print_facts(&facts, output)?;
    rows(&document, output)
}

/// What a profile allows, one line each.
fn rows(document: &Document, output: &mut Output<'_>) -> Result<(), Failure> {
    let mut line = |what: &str, name: &str, more: &str| {
        let (name, more) = (safe(name), safe(more));
        output.line(&[
            Cell::new(what, 10),
            Cell::new(&name, 48),
            Cell::new(&more, 0),
        ])
    };
    let main = &document.main;
    for executable in &main.executables {
        let path = escape(&executable.path).to_string();
        let hash = executable.sha256.map(|hash| short(&hash.to_string()));
        line("executable", &path, &hash.unwrap_or_default())?;
    }
    for file in &main.files {
        let access = match (file.read, file.write) {
            (true, true) => "read, write",
            (false, true) => "write",
            _ => "read",
        };
        line("file", &file.pattern, access)?;
    }
    for peer in &main.peers {
        let port = peer.port.map(|port| format!(" port {port}"));
        let place = format!(
            "{}/{}{}",
            peer.address,
            peer.prefix,
            port.unwrap_or_default()
        );
        line("peer", &place, &peer.protocol)?;
    }
    for socket in &main.sockets {
        line("socket", socket, "")?;
    }
    for put_in in &document.put_in {
        line("put in", &put_in.command, "")?;
    }
    for overflowed in &main.overflowed {
        line("overflowed", overflowed, "")?;
    }
    Ok(())
}

/// A document: YAML, or one line of JSON.
fn print(document: &Document, output: &mut Output<'_>) -> Result<(), Failure> {
    if output.is_json() {
        return Ok(output.json(&document.to_json())?);
    }
    Ok(output.text(&document.to_yaml())?)
}

/// What differs, in words; exit status 0 whether something does or not.
fn difference(old: &Document, new: &Document, output: &mut Output<'_>) -> Result<(), Failure> {
    for change in profile::difference(old, new) {
        if output.is_json() {
            let value = serde_json::to_value(&change)
                .map_err(|error| Failure::Failed(format!("cannot print a change: {error}")))?;
            output.json(&value)?;
        } else {
            let words = safe(&change.to_string());
            output.line(&[Cell::new(&words, 0)])?;
        }
    }
    Ok(())
}
