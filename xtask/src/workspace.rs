//! Where things lie.

use std::{
    env,
    ffi::OsString,
    path::{self, Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// The repository's root folder.
pub(crate) fn root() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}

/// Where the build leaves its results. `CARGO_TARGET_DIR` is not honoured: `monitor/build.rs` must
/// find the eBPF object, and the documents name the programs, at one fixed place.
pub(crate) fn target() -> PathBuf {
    root().join("target")
}

/// Where tools lie that setup builds or unpacks. Outside `target/`, so that they outlive it and
/// serve every clone.
///
/// # Errors
///
/// Neither `MONITOR_CACHE` nor `XDG_CACHE_HOME` nor `HOME` is set.
pub(crate) fn cache() -> Result<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty());
    let cache = cache_from(set("MONITOR_CACHE"), set("XDG_CACHE_HOME"), set("HOME")).context(
        "no place for the tools that setup builds: set MONITOR_CACHE, XDG_CACHE_HOME or HOME",
    )?;
    // The tools are also called from other folders.
    path::absolute(&cache).with_context(|| format!("finding {}", cache.display()))
}

fn cache_from(
    own: Option<OsString>,
    xdg: Option<OsString>,
    home: Option<OsString>,
) -> Option<PathBuf> {
    own.map(PathBuf::from)
        .or_else(|| xdg.map(|folder| PathBuf::from(folder).join("monitord")))
        .or_else(|| home.map(|folder| PathBuf::from(folder).join(".cache/monitord")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_setting_names_the_cache() {
        let check = |own: Option<&str>, xdg: Option<&str>, home: Option<&str>, expect| {
            let [own, xdg, home] = [own, xdg, home].map(|value| value.map(OsString::from));
            assert_eq!(
                cache_from(own, xdg, home),
                Option::map(expect, PathBuf::from)
            );
        };
        check(Some("/c"), Some("/x"), Some("/h"), Some("/c"));
        check(None, Some("/x"), Some("/h"), Some("/x/monitord"));
        check(None, None, Some("/h"), Some("/h/.cache/monitord"));
        check(None, None, None, None);
    }
}
