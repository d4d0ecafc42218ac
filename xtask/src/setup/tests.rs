use super::*;

fn found(tools_missing: &[&str], compilers: &[u32], linkers: &[u32]) -> Found {
    Found {
        tools_missing: tools_missing.iter().map(|&name| name.to_owned()).collect(),
        compilers: compilers
            .iter()
            .map(|&llvm| Compiler {
                source: toolchain::Source::Nightly,
                version: "rustc".to_owned(),
                llvm,
            })
            .collect(),
        linkers: linkers
            .iter()
            .map(|&llvm| Linker {
                folder: "/".into(),
                llvm,
            })
            .collect(),
    }
}

fn debian(llvm: u32) -> DebianCompiler {
    DebianCompiler {
        version: "1.96.0".to_owned(),
        llvm,
    }
}

#[test]
fn only_what_is_missing_is_planned() {
    let offer = |compiler: Option<u32>, llvm: &[u32]| Offer {
        compiler: compiler.map(debian),
        llvm: llvm.to_vec(),
    };
    let check = |found: Found, offer: Offer, packages: &[&str], compiler: Option<u32>, linker| {
        let plan = missing(&found, &offer);
        assert_eq!(words(&plan.packages), packages.join(" "));
        assert_eq!(plan.compiler, compiler.map(debian));
        assert_eq!(plan.linker, linker);
        assert_eq!(plan.by_hand, Vec::<String>::new());
    };
    let llvm_22 = [
        "libllvm22",
        "libpolly-22-dev",
        "libxml2-dev",
        "libzstd-dev",
        "llvm-22-dev",
        "zlib1g-dev",
    ];
    // All there, so apt is not asked for anything.
    check(found(&[], &[22], &[22]), offer(None, &[]), &[], None, None);
    // A tool alone.
    check(
        found(&["runc"], &[22], &[22]),
        offer(None, &[]),
        &["runc"],
        None,
        None,
    );
    // A fresh machine.
    check(
        found(&[], &[], &[]),
        offer(Some(22), &[22]),
        &llvm_22,
        Some(22),
        Some(22),
    );
    // The library that both the compiler and the linker are linked to is gone.
    check(
        found(&[], &[], &[22]),
        offer(Some(22), &[22]),
        &["libllvm22"],
        Some(22),
        None,
    );
    // A nightly that has a linker to fit is preferred to Debian's compiler.
    check(
        found(&[], &[22], &[]),
        offer(Some(22), &[22]),
        &llvm_22,
        None,
        Some(22),
    );
    // A nightly that no linker fits is passed over.
    check(
        found(&[], &[23], &[]),
        offer(Some(22), &[22]),
        &llvm_22,
        Some(22),
        Some(22),
    );
    check(
        found(&[], &[23], &[22]),
        offer(Some(22), &[22]),
        &["libllvm22"],
        Some(22),
        None,
    );
}

#[test]
fn what_setup_cannot_do_is_told_as_commands() {
    let check = |found: Found, offer: Offer, has_apt, parts: &[&str]| {
        let text = instructions(&missing(&found, &offer), has_apt);
        for part in parts {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
    };
    check(
        found(&["containerd", "runc"], &[22], &[22]),
        Offer::default(),
        true,
        &["apt-get update && apt-get install -y --no-install-recommends containerd runc\n"],
    );
    check(
        found(&["runc"], &[], &[]),
        Offer::default(),
        false,
        &[
            "on PATH: runc\n",
            "rustup toolchain install nightly --component rust-src\n",
            "cargo install bpf-linker --version 0.13.0 --locked --no-default-features --features llvm-22 --root /",
        ],
    );
    check(
        found(&[], &[23], &[]),
        Offer {
            compiler: None,
            llvm: vec![22],
        },
        true,
        &["LLVM 23 with", "--features llvm-23 --root /"],
    );
}

#[test]
fn the_dynamic_loader_gives_a_linked_program_away() {
    assert!(contains(
        b"\x7fELF..../lib64/ld-linux-x86-64.so.2\0",
        b"/ld-"
    ));
    assert!(!contains(b"\x7fELF....\0", b"/ld-"));
}
