//! What Debian's package manager has, can give and does.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::run;

/// Whether this is a system whose packages have the names that setup knows.
pub(crate) fn is_here() -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    is_debian_like(&release) && run::answer(Command::new("apt-get").arg("--version")).is_some()
}

fn is_debian_like(os_release: &str) -> bool {
    os_release
        .lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(key, _)| matches!(*key, "ID" | "ID_LIKE"))
        .flat_map(|(_, value)| value.trim_matches('"').split_whitespace())
        .any(|name| matches!(name, "debian" | "ubuntu"))
}

/// Reads the lists of packages anew. A list that cannot be fetched does not stop setup: what it
/// needs may be in the others, and if it is not, the installation says so.
pub(crate) fn update() {
    let outcome = run::quiet("fetching package lists", get().arg("update"));
    if let Err(error) = outcome {
        eprintln!("xtask: going on with the package lists that are here: {error:#}");
    }
}

/// Installs packages.
///
/// # Errors
///
/// apt-get fails; the error holds its last lines.
pub(crate) fn install(packages: &BTreeSet<String>) -> Result<()> {
    let names: Vec<&str> = packages.iter().map(String::as_str).collect();
    run::quiet(
        &format!("installing {}", names.join(" ")),
        get()
            .args(["install", "--yes", "--no-install-recommends"])
            .args(names),
    )
}

/// Downloads packages, each with its version, and unpacks them into a folder without installing
/// them.
///
/// # Errors
///
/// apt-get or dpkg fails, or apt-get says that all is well and leaves no package.
pub(crate) fn unpack(packages: &[String], folder: &Path) -> Result<()> {
    let debs = folder.join("debs");
    let tree = folder.join("tree");
    for made in [&debs, &tree] {
        fs::create_dir_all(made).with_context(|| format!("making {}", made.display()))?;
    }
    run::quiet(
        &format!("downloading {}", packages.join(" ")),
        get()
            // The cache may lie where apt's own user cannot write.
            .args(["-o", "APT::Sandbox::User=root", "download"])
            .args(packages)
            .current_dir(&debs),
    )?;
    let mut unpacked = 0;
    let entries = fs::read_dir(&debs).with_context(|| format!("reading {}", debs.display()))?;
    for entry in entries {
        let deb = entry
            .with_context(|| format!("reading {}", debs.display()))?
            .path();
        let name = deb.file_name().unwrap_or_default().to_string_lossy();
        run::quiet(
            &format!("unpacking {name}"),
            Command::new("dpkg").arg("--extract").arg(&deb).arg(&tree),
        )?;
        unpacked += 1;
    }
    if unpacked != packages.len() {
        bail!(
            "downloading {}: apt-get left {unpacked} packages in {}",
            packages.join(" "),
            debs.display()
        );
    }
    fs::remove_dir_all(&debs).with_context(|| format!("removing {}", debs.display()))
}

/// Those of the packages that are installed.
pub(crate) fn installed(packages: &BTreeSet<String>) -> BTreeSet<String> {
    let mut query = Command::new("dpkg-query");
    query
        .args(["--show", "--showformat", "${Package} ${db:Status-Status}\n"])
        .args(packages)
        .stderr(std::process::Stdio::null());
    // Its status tells that one of them is unknown, which is not a failure here.
    let Ok(output) = query.output() else {
        return BTreeSet::new();
    };
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.strip_suffix(" installed"))
        .map(str::to_owned)
        .collect()
}

/// One field of the newest version of a package that apt can install.
pub(crate) fn field(package: &str, name: &str) -> Option<String> {
    let shown = run::answer(
        Command::new("apt-cache")
            .args(["show", "--no-all-versions", package])
            .env("LC_ALL", "C"),
    )?;
    let prefix = format!("{name}: ");
    shown
        .lines()
        .find_map(|line| line.strip_prefix(&prefix))
        .map(str::to_owned)
}

fn get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C")
        // Another apt, such as the one that runs daily, is waited for rather than failed on.
        .args(["-o", "DPkg::Lock::Timeout=300"]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_and_what_is_made_of_it_is_recognised() {
        let check = |os_release, expect| assert_eq!(is_debian_like(os_release), expect);
        check("PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\n", true);
        check("ID=ubuntu\nID_LIKE=debian\n", true);
        check("ID=pop\nID_LIKE=\"ubuntu debian\"\n", true);
        check("ID=fedora\nHOME_URL=\"https://debian.example\"\n", false);
        check("", false);
    }
}
