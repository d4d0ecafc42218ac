//! The command line of `monitorctl rollback`.

use clap::{Args, Subcommand, ValueEnum};

use crate::digest::Digest;

/// Of `rollback`.
#[derive(Clone, Debug, Args)]
pub struct RollbackArguments {
    /// Id of a container, a unique beginning of one, or its name; of the controller KIND/NAMESPACE/NAME,
    /// such as deployment/shop/web or pod/shop/web-1
    #[arg(value_name = "TARGET")]
    pub target: Option<String>,
    /// To what, and how
    #[command(flatten)]
    pub aims: RollbackAims,
    /// Only shows what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Its parts
    #[command(subcommand)]
    pub command: Option<RollbackCommand>,
}

/// What a rollback aims at.
#[derive(Clone, Debug, Args)]
pub struct RollbackAims {
    /// Digest of a manifest or an index; if left out the last approved one before that which runs, of
    /// those that ran as this container
    #[arg(long, value_name = "DIGEST")]
    pub to: Option<Digest>,
    /// If the new container does not run: leave all as it is then, put the old one back, or have
    /// neither run
    #[arg(long, value_enum, default_value_t = WhenFailed::Hold, value_name = "WHAT")]
    pub on_failure: WhenFailed,
    /// Why
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Also a StatefulSet, whose pods keep their volumes
    #[arg(long)]
    pub allow_stateful: bool,
    /// Which container of a workload's pods; needed where there are several
    #[arg(long, value_name = "NAME")]
    pub container: Option<String>,
}

/// What becomes of a rollback whose new container does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WhenFailed {
    /// All stays as it is then, for people to look at.
    Hold,
    /// The old container is put back and started again.
    Undo,
    /// Neither runs.
    Stop,
}

impl WhenFailed {
    /// Its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hold => "hold",
            Self::Undo => "undo",
            Self::Stop => "stop",
        }
    }
}

/// Parts of a rollback.
#[derive(Clone, Debug, Subcommand)]
pub enum RollbackCommand {
    /// Shows what a rollback would do, and keeps that for ten minutes
    Plan {
        /// Id of a container, a unique beginning of one, or its name; of the controller
        /// KIND/NAMESPACE/NAME, such as deployment/shop/web or pod/shop/web-1
        #[arg(value_name = "TARGET")]
        target: String,
        /// To what, and how
        #[command(flatten)]
        aims: RollbackAims,
    },

    /// Carries out a plan, if nothing has changed since it was made
    Apply {
        /// Its id
        #[arg(value_name = "PLAN_ID")]
        plan: String,
    },

    /// Plans and orders
    Status,

    /// Gives up a plan, or an order that has not begun to stop its container
    Abort {
        /// Its id
        #[arg(value_name = "ID")]
        id: String,
    },
}
