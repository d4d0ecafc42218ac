//! The command line.

mod rollback;

use std::{ffi::OsString, num::ParseIntError, path::PathBuf, str::FromStr};

use clap::{Args, Parser, Subcommand, ValueEnum, error::ErrorKind};
use jiff::Timestamp;
use monitor_api::v1::AuditLink;

pub use self::rollback::{RollbackAims, RollbackArguments, RollbackCommand, WhenFailed};
use super::Failure;
use crate::{
    api::Address,
    approval::document::check_repository,
    digest::{Digest, DigestError},
};

/// Alerts when no other start is given.
pub(super) const LAST_ALERTS: u64 = 100;

/// Asks a node's monitord what it sees.
#[derive(Debug, Parser)]
#[command(
    name = "monitorctl",
    version,
    propagate_version = true,
    after_help = "\
Exit status: 0 done, 1 failed, 2 wrong usage, 3 daemon unreachable, 4 refused by a precondition or
a permission. One line on stderr says why and what to do.

Examples:
  monitorctl status
  monitorctl alerts --follow
  monitorctl alerts --since 0 -o json | jq -r .message
  monitorctl container list
  monitorctl image contents docker.io/library/nginx:1.27 /usr/sbin/nginx"
)]
pub struct Arguments {
    /// Where the daemon listens: unix:///PATH, or https://HOST:PORT with --ca, --cert and --key
    #[arg(
        long,
        global = true,
        env = "MONITOR_ADDRESS",
        default_value = "unix:///run/monitord/monitord.sock",
        value_name = "ADDRESS"
    )]
    pub address: Address,

    /// For https: whom the daemon's certificate must come from, and who calls
    #[command(flatten)]
    pub tls: Tls,

    /// How to print: a table for people, or JSON, one object per line; alerts also as OCSF
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,

    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Files for an address with https, each PEM.
#[derive(Debug, Default, Args)]
pub struct Tls {
    /// For https: certificates of the authority of the daemon's certificate
    #[arg(long, global = true, env = "MONITOR_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// For https: the certificate that says who calls
    #[arg(long, global = true, env = "MONITOR_CERT", value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// For https: the private key of --cert
    #[arg(long, global = true, env = "MONITOR_KEY", value_name = "FILE")]
    pub key: Option<PathBuf>,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people; may change.
    Table,
    /// One object per line, by the contract.
    Json,
    /// `alerts` alone: as OCSF Detection Findings, one per line.
    Ocsf,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Node, hook set, loss, containers, images, alerts
    Status,

    /// What containers did that their images do not account for
    #[command(
        long_about = "\
What containers did that their images do not account for, oldest first.

Without --since it starts at the last 100 alerts, or at the last N with --limit N. Without
--follow it ends when it has printed what is there.",
        after_help = "\
Examples:
  monitorctl alerts                       the last 100
  monitorctl alerts --since 0             all that the daemon still has
  monitorctl alerts --since 4711 --follow all after cursor 4711, and what comes
  monitorctl alerts --since 01J…/4711     the same, and told if the journal is another one by now
  monitorctl alerts --filter 'severity == \"critical\" && container.name == \"web\"'
  monitorctl alerts --since 0 -o ocsf     as OCSF Detection Findings (class 2004)
  monitorctl alerts --follow -o json | jq 'select(.severity == \"critical\")'"
    )]
    Alerts(AlertsOptions),

    /// Containers of the node
    #[command(subcommand)]
    Container(ContainerCommand),

    /// The same as `container list`
    Containers,

    /// Images of the node
    #[command(subcommand)]
    Image(ImageCommand),

    /// What images' containers are expected to do
    #[command(subcommand)]
    Profile(ProfileCommand),

    /// Rules over what containers do and what is found
    #[command(subcommand)]
    Policy(PolicyCommand),

    /// Findings that are not told, for a while
    #[command(subcommand)]
    Exception(ExceptionCommand),

    /// Which images may run
    #[command(subcommand)]
    Approval(ApprovalCommand),

    /// Rolls a container back to an approved image
    #[command(
        args_conflicts_with_subcommands = true,
        long_about = "\
Rolls a container back to an approved image: plan and apply in one, or each by itself. Tells each step,
and ends when the approved image is proven to run or the order has gone wrong. Exit status 4 if it is
refused, 1 if it went wrong.",
        after_help = "\
Examples:
  monitorctl rollback web --reason OPS-123              to the last approved image that ran as web
  monitorctl rollback web --to sha256:4c… --dry-run     only shows what would be done
  monitorctl rollback plan web --to sha256:4c… --on-failure undo --reason OPS-123
  monitorctl rollback apply 01J…
  monitorctl rollback status"
    )]
    Rollback(Box<RollbackArguments>),

    /// What containers do and what is found, in lines of JSON for `policy test`
    #[command(
        long_about = "\
What containers do from now on and what is found, one line of JSON each, until Ctrl-C or for a time. It
holds paths, peers and arguments of all containers (passwords and tokens in arguments are left out).",
        after_help = "\
Examples:
  monitorctl record --seconds 600 > events.jsonl
  monitorctl policy test new.yaml --events events.jsonl"
    )]
    Record {
        /// End after this many seconds
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
        seconds: Option<u64>,
    },

    /// Who changed what by the API
    #[command(subcommand)]
    Audit(AuditCommand),
}

/// A cursor, and the journal it is of if that was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Since {
    /// Empty if it was not said.
    pub journal: String,
    /// The last alert that the user has.
    pub cursor: u64,
}

impl FromStr for Since {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (journal, cursor) = text.split_once('/').unwrap_or(("", text));
        Ok(Self {
            journal: journal.to_owned(),
            cursor: cursor.parse()?,
        })
    }
}

/// Which alerts.
#[derive(Debug, Args)]
pub struct AlertsOptions {
    /// Go on with what comes, until Ctrl-C
    #[arg(short, long)]
    pub follow: bool,

    /// Start after this cursor: the last one you have; 0 is before the first. With the journal's
    /// name before it you are told if the journal is another one by now
    #[arg(long, value_name = "[JOURNAL/]CURSOR")]
    pub since: Option<Since>,

    /// Only alerts for which this expression in CEL over the alert's JSON is true
    #[arg(long, value_name = "CEL")]
    pub filter: Option<String>,

    /// End after this many alerts
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
}

/// What to do with containers.
#[derive(Debug, Subcommand)]
pub enum ContainerCommand {
    /// One line per container: who it is, its image and how that is known
    List,

    /// All that is known of one container
    #[command(after_help = "\
Examples:
  monitorctl container show 3f2a
  monitorctl container show web -o json")]
    Show {
        /// Its id, a unique beginning of it, or its name
        #[arg(value_name = "CONTAINER")]
        container: String,
    },

    /// Every difference of a running container's root filesystem from its image
    #[command(
        long_about = "\
Every difference of a running container's root filesystem from its image: files added, modified,
removed, and those whose mode, owner or capabilities were changed. All files are read. As JSON the last
line is an object `verified` with the container, its image and how many differences there are.",
        after_help = "\
Examples:
  monitorctl container verify web
  monitorctl container verify web -o json | jq 'select(.verdict == \"modified\")'"
    )]
    Verify {
        /// Its id, a unique beginning of it, or its name
        #[arg(value_name = "CONTAINER")]
        container: String,
    },

    /// What a running container is and differs in from its image, signed
    #[command(
        long_about = "\
Compares a running container with its image, as `container verify` does, and prints an in-toto
statement of it in a DSSE envelope, signed with an Ed25519 key: the image's manifest digest, how it is
known to be the container's (identity) and what it holds (evidence), node, time, and the differences, at
most 10,000 of them. Exit status 4 if no one image accounts for the container.",
        after_help = "\
Examples:
  openssl genpkey -algorithm ed25519 -out key.pem
  monitorctl container attest web --signing-key key.pem > web.dsse.json
  jq -r .payload web.dsse.json | base64 -d | jq .predicate.differences"
    )]
    Attest {
        /// Its id, a unique beginning of it, or its name
        #[arg(value_name = "CONTAINER")]
        container: String,

        /// Private key in PEM (PKCS #8, Ed25519)
        #[arg(long, value_name = "FILE")]
        signing_key: PathBuf,
    },

    /// When a container was watched and when not, also one that is gone
    #[command(after_help = "\
Examples:
  monitorctl container coverage web
  monitorctl container coverage web --from 2026-11-22T03:00:00Z --to 2026-11-22T04:00:00Z
  monitorctl container coverage web -o json | jq 'select(.state == \"gap\")'")]
    Coverage {
        /// Its id, a unique beginning of it, or its name
        #[arg(value_name = "CONTAINER")]
        container: String,

        /// From when on, RFC 3339; since it was created if left out
        #[arg(long, value_name = "T", value_parser = read_time)]
        from: Option<Timestamp>,

        /// Until when, RFC 3339; until now if left out
        #[arg(long, value_name = "T", value_parser = read_time)]
        to: Option<Timestamp>,
    },
}

/// A time on the command line.
fn read_time(text: &str) -> Result<Timestamp, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is no time; give one as 2026-11-22T03:20:14Z"))
}

/// What to do with images.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// One line per image: its digest and whether its contents are known
    List,

    /// What an image holds: everything, or what one path resolves to
    #[command(after_help = "\
Examples:
  monitorctl image contents docker.io/library/nginx:1.27
  monitorctl image contents sha256:4c… /usr/sbin/nginx -o json")]
    Contents {
        /// A reference, or a manifest or config digest
        image: String,

        /// A path inside the image; symlinks are followed as inside it
        path: Option<OsString>,
    },

    /// Reads the blobs of an image again and checks their digests; exit status 1 if one fails
    Verify {
        /// A reference, or a manifest or config digest
        image: String,
    },

    /// Which image ran on this node since the daemon started, where and when
    Usage,
}

/// What to do with profiles.
#[derive(Clone, Debug, Subcommand)]
pub enum ProfileCommand {
    /// One line per profile: its image, whether it is learned, and how much it has
    List,

    /// What the containers of one image are expected to do
    #[command(after_help = "\
Examples:
  monitorctl profile show docker.io/library/nginx:1.27
  monitorctl profile show sha256:4c8f01b2a977 -o json | jq .document.files")]
    Show {
        /// A reference, or a manifest or config digest, also its first 12 digits or more
        image: String,
    },

    /// Prints the document of a profile in YAML, to be read, edited and kept
    #[command(after_help = "\
Example:
  monitorctl profile export docker.io/library/nginx:1.27 > nginx.yaml")]
    Export {
        /// A reference, or a manifest or config digest, also its first 12 digits or more
        image: String,
    },

    /// Puts a profile in force, in place of what was learned
    Import {
        /// A document in YAML; `-` is standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },

    /// Lets a profile learn again, beside what it has
    Learn {
        /// A reference, or a manifest or config digest, also its first 12 digits or more
        image: String,
    },

    /// Ends learning: what the profile does not have raises alerts from now on
    Freeze {
        /// A reference, or a manifest or config digest, also its first 12 digits or more
        image: String,
    },

    /// What one profile has and another has not, in words
    #[command(after_help = "\
Examples:
  monitorctl profile diff docker.io/library/web:1 docker.io/library/web:2
  monitorctl profile diff reviewed.yaml docker.io/library/web:2")]
    Diff {
        /// A file, or an image
        old: String,
        /// A file, or an image
        new: String,
    },

    /// Makes one profile of what several nodes have learned of the same image
    #[command(after_help = "\
Example:
  monitorctl profile merge node-1.yaml node-2.yaml > web.yaml")]
    Merge {
        /// Documents in YAML, of one manifest digest
        #[arg(value_name = "FILE", required = true)]
        files: Vec<PathBuf>,
    },
}

/// What to do with policies.
#[derive(Clone, Debug, Subcommand)]
pub enum PolicyCommand {
    /// One line per rule: what it looks at, and how often it held
    List,

    /// What a policy would make of a recording, without a daemon: exit status 1 if it is refused
    #[command(
        long_about = "\
What a policy would make of a recording, one line per finding: what its rules add, and what was found by
the daemon itself, with the severity that it then has and the exception that keeps it back. No daemon is
asked, and no other policy is in force.",
        after_help = "\
Example:
  monitorctl policy test new.yaml --events events.jsonl"
    )]
    Test {
        /// A policy in YAML
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// What `monitorctl record` wrote; `-` is standard input
        #[arg(long, value_name = "RECORDING")]
        events: PathBuf,
    },
}

/// What to do with exceptions.
#[derive(Clone, Debug, Subcommand)]
pub enum ExceptionCommand {
    /// One line per exception, also those whose time is over
    List,

    /// Has findings like that of an alert not be told
    #[command(
        long_about = "\
Has findings like that of an alert not be told until a time, at most a year away: of the same kind, file
with the same bytes or peer, and program, in containers of the same repository. The daemon keeps it.",
        after_help = "\
Example:
  monitorctl exception add --from-alert 01KAZ3N0W5T1QG4XJX1D3B9V7E --until 2027-01-31T00:00:00Z --reason 'debugging, OPS-123'"
    )]
    Add {
        /// Id of the alert, one of the newest 10,000
        #[arg(long, value_name = "ID")]
        from_alert: String,
        /// When it ends, RFC 3339; at most a year from now
        #[arg(long, value_name = "T", value_parser = read_time)]
        until: Timestamp,
        /// Why
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },

    /// Takes away an exception that was added so
    Remove {
        /// Its id, as `exception list` shows it
        #[arg(value_name = "ID")]
        id: String,
    },
}

/// What to do with approvals.
#[derive(Clone, Debug, Subcommand)]
pub enum ApprovalCommand {
    /// What was said of images, by repository, oldest first
    List,

    /// Has an image be approved; of its repository only what is approved may run from then on
    #[command(after_help = "\
Examples:
  monitorctl approval approve registry.example.org/web@sha256:4c… --reason 'release 42'
  monitorctl approval approve registry.example.org/web@sha256:4c… --until 2027-01-31T00:00:00Z --reason OPS-123")]
    Approve {
        /// Reference without a tag, and digest of a manifest or an index
        #[arg(value_name = "REPO@DIGEST", value_parser = read_pinned)]
        image: Pinned,
        /// When it ends, RFC 3339; without an end if left out
        #[arg(long, value_name = "T", value_parser = read_time)]
        until: Option<Timestamp>,
        /// Why
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },

    /// Has an image no longer be approved, in each repository in which it was
    Revoke {
        /// Digest of a manifest or an index, as it was approved
        #[arg(value_name = "DIGEST")]
        digest: Digest,
        /// Why
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },

    /// Whether an image of this node may run, and why; exit status 4 if it may not
    #[command(after_help = "\
Examples:
  monitorctl approval verify registry.example.org/web:42
  monitorctl approval verify sha256:4c8f01b2a977 -o json")]
    Verify {
        /// A reference, or a manifest or config digest, also its first 12 digits or more
        #[arg(value_name = "IMAGE")]
        image: String,
    },
}

/// An image by its repository and its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// Reference without tag and digest.
    pub repository: String,
    /// Digest of a manifest or an index.
    pub digest: Digest,
}

/// An image on the command line.
fn read_pinned(text: &str) -> Result<Pinned, String> {
    let (repository, digest) = (text.split_once('@'))
        .ok_or_else(|| format!("{text:?} has no digest; give REPOSITORY@sha256:…"))?;
    check_repository(repository)?;
    Ok(Pinned {
        repository: repository.to_owned(),
        digest: digest
            .parse()
            .map_err(|error: DigestError| error.to_string())?,
    })
}

/// What to do with the audit log.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Calls that changed something, and those refused for want of a role, oldest first
    List {
        /// Start after this record; 0 is before the first
        #[arg(long, value_name = "SEQUENCE", default_value_t = 0)]
        since: u64,
    },

    /// Whether records were removed or changed; exit status 1 if some were
    #[command(
        long_about = "\
Whether records of the audit log were removed or changed: how many there are, the first and the last with
their hashes, and where the chain is broken. Exit status 1 if it is.

Whoever is root on the node can write the whole log anew, or cut its end off, without a break in it. That
is found by the hash of a record that was noted elsewhere: by `last` of an earlier run, by `status`, or
by the daemon's own log, and given by --head.",
        after_help = "\
Examples:
  monitorctl audit verify
  monitorctl audit verify --head 4711/9f86d0…"
    )]
    Verify {
        /// A record that was noted elsewhere, and its hash
        #[arg(long, value_name = "SEQUENCE/HASH", value_parser = read_link)]
        head: Option<AuditLink>,
    },
}

/// A record and its hash on the command line.
fn read_link(text: &str) -> Result<AuditLink, String> {
    let read = || {
        let (sequence, hash) = text.split_once('/')?;
        Some(AuditLink {
            sequence: sequence.parse().ok()?,
            hash: crate::audit::chain::hash(hash)?.to_string(),
        })
    };
    read().ok_or_else(|| {
        format!("{text:?} is no record; give its sequence, `/` and the 64 digits of its hash")
    })
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Parsed {
    /// A command.
    Run(Arguments),
    /// A text to print, such as the help.
    Print(String),
}

/// Reads a command line; the first argument is the program's name.
///
/// # Errors
///
/// [`Failure::Usage`], in one line.
pub fn parse(line: impl IntoIterator<Item = OsString>) -> Result<Parsed, Failure> {
    let error = match Arguments::try_parse_from(line) {
        Ok(arguments) => return Ok(Parsed::Run(arguments)),
        Err(error) => error,
    };
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            Ok(Parsed::Print(error.render().to_string()))
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => Err(
            Failure::Usage("a command is missing; `monitorctl --help` lists them".to_owned()),
        ),
        _ => Err(Failure::Usage(one_line(&error.render().to_string()))),
    }
}

/// clap's error without its paragraphs.
fn one_line(text: &str) -> String {
    let text = text.split("\nUsage:").next().unwrap_or(text);
    let text = text.split("\nFor more information").next().unwrap_or(text);
    let words = text.trim_start_matches("error:").split_whitespace();
    format!(
        "{}; see `monitorctl --help`",
        words.collect::<Vec<_>>().join(" ")
    )
}
