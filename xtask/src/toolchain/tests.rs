use super::*;

fn compiler(llvm: u32) -> Compiler {
    Compiler {
        source: Source::Nightly,
        version: format!("rustc with {llvm}"),
        llvm,
    }
}

fn linker(llvm: u32) -> Linker {
    Linker {
        folder: PathBuf::from(format!("/{llvm}")),
        llvm,
    }
}

#[test]
fn a_linker_is_never_older_than_the_compiler() {
    let check = |compilers: &[u32], linkers: &[u32], expect: Option<(u32, u32)>| {
        let compilers: Vec<Compiler> = compilers.iter().copied().map(compiler).collect();
        let linkers: Vec<Linker> = linkers.iter().copied().map(linker).collect();
        let fitting = fit(&compilers, &linkers);
        assert_eq!(
            fitting.map(|both| (both.compiler.llvm, both.linker.llvm)),
            expect
        );
    };
    check(&[22], &[22], Some((22, 22)));
    check(&[21], &[22, 23], Some((21, 22)));
    check(&[23, 22], &[22], Some((22, 22)));
    check(&[23], &[21, 22], None);
    check(&[], &[22], None);
    check(&[22], &[], None);
}

#[test]
fn the_oldest_llvm_on_offer_that_is_new_enough_is_taken() {
    let check = |compiler, offered: &[u32], expect| {
        assert_eq!(linker_llvm(compiler, offered), expect);
    };
    check(22, &[21, 22, 23], Some(22));
    check(19, &[22], Some(22));
    check(23, &[21, 22], None);
    check(24, &[24], None);
    check(22, &[], None);
}

#[test]
fn versions_are_read_as_rustc_and_apt_write_them() {
    let answer = "rustc 1.96.0 (ac68faa20 2026-05-25)\nbinary: rustc\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
    assert_eq!(parse_version(answer), Some(("rustc 1.96.0".to_owned(), 22)));
    assert_eq!(parse_version("rustc 1.96.0\n"), None);
    assert_eq!(
        standard_library("1.96.0+dfsg1-1~deb12u2").as_deref(),
        Some("libstd-rust-web-1.96")
    );
    assert_eq!(standard_library("1"), None);
    let depends = "libc6 (>= 2.34), libllvm22 (>= 1:22), libstdc++6 (>= 11)";
    assert_eq!(linked_llvm(depends), Some(22));
    assert_eq!(linked_llvm("libc6, libllvm22"), Some(22));
    assert_eq!(linked_llvm("libc6"), None);
}

#[test]
fn a_folder_of_the_cache_is_whole_or_not_there() -> Result<()> {
    let cache = std::env::temp_dir().join(format!("xtask-cache-{}", std::process::id()));
    let fails = install_into(&cache, "tool", |folder| {
        fs::write(folder.join("half"), "")?;
        bail!("no space")
    });
    assert_eq!(
        fails.map_err(|error| error.to_string()),
        Err("no space".into())
    );
    assert_eq!(folders(&cache, ""), Vec::<PathBuf>::new());

    fs::create_dir_all(cache.join("unfinished-tool"))?;
    remove_unfinished(&cache)?;
    assert_eq!(folders(&cache, ""), Vec::<PathBuf>::new());

    for content in ["first", "second"] {
        install_into(&cache, "tool", |folder| {
            Ok(fs::write(folder.join("file"), content)?)
        })?;
        assert_eq!(fs::read_to_string(cache.join("tool/file"))?, content);
    }
    assert_eq!(folders(&cache, ""), [cache.join("tool")]);
    Ok(fs::remove_dir_all(&cache)?)
}
