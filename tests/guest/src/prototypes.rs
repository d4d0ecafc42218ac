//! The prototypes that the programs' comments name, against the BTF of the running kernel.
//!
//! A hook's comment says `` Kernel prototype: `int f(struct a *x, unsigned long y)` `` above its
//! attribute. A hook without one, or with another than the kernel's, is an error: an argument that
//! the kernel has moved would be read as something else, and the verifier does not always notice.
//! A hook that is an addition says `, or none` behind it: it is compared where it can be attached.

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};
use monitor::sensor::{
    btf::{Btf, Prototype},
    offsets::{self, KERNEL_BTF},
};

/// All files of the programs, one after the other.
const PROGRAMS: &str = include_str!(concat!(env!("OUT_DIR"), "/programs.rs"));

/// The attributes of hooks whose arguments have types, and what the name in them is of.
const ATTRIBUTES: [(&str, Kind); 4] = [
    ("#[btf_tracepoint(", Kind::Tracepoint),
    ("#[lsm(", Kind::Lsm),
    ("#[fentry(", Kind::Function),
    ("#[fexit(", Kind::Function),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tracepoint,
    Lsm,
    Function,
}

#[derive(Debug, PartialEq, Eq)]
struct Hook {
    kind: Kind,
    name: String,
    /// One for each form that a kernel may have.
    prototypes: Vec<Prototype>,
    /// A kernel need not have it.
    is_addition: bool,
}

/// Compares every hook of the programs with the running kernel.
///
/// # Errors
///
/// A hook names no prototype, or another than the kernel's, or the kernel does not have it.
pub fn check_all() -> Result<()> {
    let bytes = fs::read(KERNEL_BTF).with_context(|| format!("reading {KERNEL_BTF}"))?;
    let btf = Btf::parse(&bytes, None)?;
    let hooks = hooks(PROGRAMS)?;
    ensure!(!hooks.is_empty(), "the programs have no hooks");
    let takes_additions = offsets::read()?.lacks.is_none();
    for hook in hooks {
        if hook.is_addition && !takes_additions {
            continue;
        }
        let found = match hook.kind {
            Kind::Tracepoint => btf.tracepoint_prototype(&hook.name)?,
            Kind::Lsm => btf.function_prototype(&format!("bpf_lsm_{}", hook.name))?,
            Kind::Function => btf.function_prototype(&hook.name)?,
        };
        ensure!(
            hook.prototypes.contains(&found),
            "{}: the kernel has {found:?}, the comment says {:?}",
            hook.name,
            hook.prototypes
        );
    }
    Ok(())
}

/// The hooks of a source text, each with the prototype of the comment above it.
fn hooks(source: &str) -> Result<Vec<Hook>> {
    let mut hooks = Vec::new();
    let mut comment = String::new();
    for line in source.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            comment += text;
            continue;
        }
        let attribute = ATTRIBUTES
            .iter()
            .find_map(|(start, kind)| Some((line.strip_prefix(start)?, *kind)));
        if let Some((rest, kind)) = attribute {
            let name = rest.split('"').nth(1);
            let name = name.with_context(|| format!("{line} names no hook"))?;
            let prototypes =
                prototypes_in(&comment).with_context(|| format!("{name}: {comment:?}"))?;
            hooks.push(Hook {
                kind,
                name: name.to_owned(),
                prototypes,
                is_addition: comment.contains("or none."),
            });
        }
        if !line.starts_with("#[") {
            comment.clear();
        }
    }
    Ok(hooks)
}

/// Those of a comment, each between backticks: `` Kernel prototype: `…` or `…` ``.
fn prototypes_in(comment: &str) -> Result<Vec<Prototype>> {
    let (_, rest) = comment
        .split_once("Kernel prototype: `")
        .context("the comment names no kernel prototype")?;
    rest.split('`').step_by(2).map(prototype).collect()
}

fn prototype(text: &str) -> Result<Prototype> {
    let (head, parameters) = text
        .strip_suffix(')')
        .and_then(|text| text.split_once('('))
        .with_context(|| format!("{text:?} is no prototype"))?;
    let parameters = match parameters.trim() {
        "" | "void" => Vec::new(),
        list => list.split(',').map(type_of).collect::<Result<_>>()?,
    };
    Ok(Prototype {
        returns: type_of(head)?,
        parameters,
    })
}

/// `struct file *file` without its name and with single blanks: `struct file *`.
fn type_of(declaration: &str) -> Result<String> {
    let spaced = declaration.replace('*', " * ");
    let mut words: Vec<&str> = spaced.split_whitespace().collect();
    match words.pop() {
        Some(name) if name != "*" && !words.is_empty() => Ok(words.join(" ").replace("* *", "**")),
        _ => bail!("{declaration:?} has no type or no name"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_are_read_with_their_comments() -> Result<()> {
        let source = r#"
/// Something else.
fn other() {}
/// Kernel prototype: `int file_open(const struct file *file,
/// unsigned long **where)` or `int file_open(void)`.
#[lsm(hook = "file_open")]
pub fn open(ctx: LsmContext) -> i32 {
"#;
        let expect = Hook {
            kind: Kind::Lsm,
            name: "file_open".to_owned(),
            prototypes: vec![
                Prototype {
                    returns: "int".to_owned(),
                    parameters: vec![
                        "const struct file *".to_owned(),
                        "unsigned long **".to_owned(),
                    ],
                },
                Prototype {
                    returns: "int".to_owned(),
                    parameters: Vec::new(),
                },
            ],
            is_addition: false,
        };
        assert_eq!(hooks(source)?, [expect]);
        Ok(())
    }

    #[test]
    fn a_hook_without_a_prototype_is_refused() {
        let check = |comment: &str, expect: &str| {
            let source = format!("{comment}\n#[fentry(function = \"f\")]\nfn f() {{}}");
            let refused = hooks(&source).map_err(|error| format!("{error:#}"));
            assert!(
                refused.as_ref().is_err_and(|error| error.contains(expect)),
                "{refused:?}"
            );
        };
        check("", "names no kernel prototype");
        check("/// Kernel prototype: `int`.", "is no prototype");
        check("/// Kernel prototype: `int f(int)`.", "no type or no name");
    }

    #[test]
    fn the_comments_of_the_programs_are_read() -> Result<()> {
        assert!(!hooks(PROGRAMS)?.is_empty());
        Ok(())
    }
}
