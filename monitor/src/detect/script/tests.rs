use super::*;
use crate::containers::processes::tests::program;

fn used(executable: &str, line: &str, path: &str, is_standard_input: bool) -> Use {
    let program = program(executable, line);
    judge(&Opened {
        program: Some(&program),
        path: path.as_bytes(),
        is_standard_input,
    })
}

const SOURCED: Use = Use::Sourced(ShellKind::Dash);

#[test]
fn what_the_command_line_names_is_run() {
    let check = |executable: &str, line: &str, path: &str, expect: Use| {
        assert_eq!(
            used(executable, line, path, false),
            expect,
            "{line}: {path}"
        );
    };
    for (executable, line) in [
        ("/bin/dash", "sh /tmp/x"),
        ("/bin/dash", "sh -e ./x"),
        ("/bin/dash", "sh -eu -o pipefail -- ../tmp/x argument"),
        ("/bin/bash", "bash +x --rcfile /tmp/x"),
        ("/bin/bash", "foo --init-file=/tmp/x -i"),
        ("/bin/busybox", "sh /tmp/x"),
        ("/bin/busybox", "busybox ash -x /tmp//x"),
        ("/bin/busybox", "-sh x"),
        ("/usr/bin/python3.11", "python3 -u -W ignore /tmp/x a b"),
        ("/usr/bin/python3.11", "python3 -Wignore /tmp/x"),
        ("/usr/bin/perl", "perl -w -I lib /tmp/x"),
        ("/usr/bin/ruby3.1", "ruby -r /tmp/x other"),
        ("/usr/bin/node", "node --require /tmp/x other.js"),
        ("/usr/bin/node", "node --inspect=1 x"),
        ("/usr/bin/bun", "bun run x"),
        ("/usr/bin/php8.2", "php -d a=b -f /tmp/x"),
        ("/usr/bin/lua5.4", "lua -l m x"),
        ("/usr/bin/tclsh8.6", "tclsh -encoding utf-8 x"),
        ("/usr/bin/java", "java -cp a:b -jar /tmp/x"),
        ("/usr/bin/java", "java -Da=b --source 17 x"),
        ("/usr/bin/mawk", "awk -F : -f /tmp/x data"),
        ("/bin/busybox", "awk -f /tmp/x"),
    ] {
        check(executable, line, "/tmp/x", Use::Script);
    }
    for (executable, line) in [
        ("/usr/bin/python3.11", "python3 -c code /tmp/x"),
        ("/usr/bin/python3.11", "python3 -m module x"),
        ("/usr/bin/python3.11", "python3 other /tmp/x"),
        ("/usr/bin/perl", "perl -ne code /tmp/x"),
        ("/usr/bin/node", "node -e code /tmp/x"),
        ("/usr/bin/php8.2", "php -r code /tmp/x"),
        ("/usr/bin/java", "java -jar app.jar /tmp/x"),
        ("/usr/bin/mawk", "awk program /tmp/x"),
        ("/bin/busybox", "cat /tmp/x"),
        ("/bin/busybox", "busybox wget /tmp/x"),
        ("/usr/bin/nodename", "x /tmp/y"),
    ] {
        check(executable, line, "/tmp/x", Use::Data);
    }
    check("/bin/dash", "sh -c code /tmp/x", "/tmp/x", SOURCED);
    check("/bin/dash", "sh /tmp/other", "/tmp/x", SOURCED);
    check("/bin/dash", "sh -c code", "/etc/passwd", Use::Data);
    check(
        "/bin/bash",
        "bash -c code",
        "/root/.bash_history",
        Use::Data,
    );
    check("/bin/dash", "sh", "/tmp/x", SOURCED);
    let by_bash = Use::Sourced(ShellKind::Bash);
    check("/usr/bin/bash", "sh -c code", "/tmp/x", by_bash);
    let by_zsh = Use::Sourced(ShellKind::Unknown);
    check("/usr/bin/zsh", "zsh -c code", "/tmp/x", by_zsh);
}

#[test]
fn each_shell_shows_its_commands_in_its_way() {
    let check = |shell: ShellKind, sign: Sign, is_newest: bool, expect: Option<Shown>| {
        let shown = shell.shown_by(sign, is_newest);
        assert_eq!(shown, expect, "{shell:?} {sign:?} {is_newest}");
    };
    let (run, data) = (Some(Shown::Run), Some(Shown::Data));
    check(ShellKind::Bash, Sign::Examined, true, run);
    check(ShellKind::Bash, Sign::Kept, true, None);
    check(ShellKind::Dash, Sign::Kept, true, run);
    check(ShellKind::Dash, Sign::Kept, false, None);
    check(ShellKind::Dash, Sign::Examined, true, None);
    check(ShellKind::Unknown, Sign::Kept, true, run);
    check(ShellKind::Unknown, Sign::Kept, false, None);
    check(ShellKind::Unknown, Sign::Examined, false, run);
    for shell in [ShellKind::Bash, ShellKind::Dash, ShellKind::Unknown] {
        check(shell, Sign::Redirected, true, data);
    }
}

#[test]
fn standard_input_is_run_by_who_was_given_nothing_else() {
    let check = |executable: &str, line: &str, expect: Use| {
        assert_eq!(used(executable, line, "/tmp/x", true), expect, "{line}");
    };
    for (executable, line) in [
        ("/bin/dash", "sh"),
        ("/bin/dash", "sh -e"),
        ("/bin/dash", "sh -s a b"),
        ("/bin/dash", "sh -"),
        ("/bin/busybox", "ash"),
        ("/usr/bin/python3.11", "python3"),
        ("/usr/bin/python3.11", "python3 - a"),
        ("/usr/bin/perl", "perl -w"),
        ("/usr/bin/node", "node"),
    ] {
        check(executable, line, Use::Script);
    }
    for (executable, line) in [
        ("/bin/dash", "sh -c code"),
        ("/bin/dash", "sh /tmp/y"),
        ("/bin/busybox", "cat"),
        ("/usr/bin/python3.11", "python3 -c code"),
        ("/usr/bin/python3.11", "python3 x.py"),
        ("/usr/bin/perl", "perl -ne code"),
        ("/usr/bin/mawk", "awk program"),
        ("/usr/bin/java", "java Main"),
    ] {
        check(executable, line, Use::Data);
    }
}

#[test]
fn modules_go_by_their_name() {
    let check = |executable: &str, path: &str, expect: Use| {
        assert_eq!(used(executable, "x -c", path, false), expect, "{path}");
    };
    check("/usr/bin/python3", "/lib/m.py", Use::Script);
    check(
        "/usr/bin/python3",
        "/l/__pycache__/m.cpython-311.pyc",
        Use::Script,
    );
    check("/usr/bin/python3", "/data/m.json", Use::Data);
    check("/usr/bin/python3", "/data/py", Use::Data);
    check("/usr/bin/perl", "/lib/M.pm", Use::Script);
    check("/usr/bin/node", "/app/package.json", Use::Data);
    check("/usr/bin/node", "/app/a.mjs", Use::Script);
    check("/usr/bin/java", "/app/a.jar", Use::Script);
    check("/usr/bin/php", "/app/a.php", Use::Script);
}

#[test]
fn a_program_that_only_a_script_names_is_an_interpreter() {
    let mut program = program("/opt/own", "own -x /tmp/s a");
    program.script = Some(b"/tmp/s".to_vec());
    let use_of = |path: &[u8]| {
        judge(&Opened {
            program: Some(&program),
            path,
            is_standard_input: false,
        })
    };
    assert_eq!(use_of(b"/tmp/s"), Use::Script);
    assert_eq!(use_of(b"/tmp/data"), Use::Data);
}

#[test]
fn a_cache_is_bound_to_its_source() {
    let check = |path: &str, expect: Option<&str>| {
        assert_eq!(
            source_of_cache(path.as_bytes()),
            expect.map(|source| source.as_bytes().to_vec()),
            "{path}"
        );
    };
    check("/a/__pycache__/m.cpython-311.pyc", Some("/a/m.py"));
    check("/a/__pycache__/m.cpython-311.opt-1.pyc", Some("/a/m.py"));
    check("/a/__pycache__/m.pyc", None);
    check("/a/m.cpython-311.pyc", None);
    check("m.pyc", None);

    let head = |flags: u32, bytes: u32| {
        [
            [1, 2, 3, 4],
            flags.to_le_bytes(),
            [0; 4],
            bytes.to_le_bytes(),
        ]
        .concat()
    };
    assert!(is_cache_of(&head(0, 7), 7));
    assert!(!is_cache_of(&head(0, 7), 8));
    assert!(!is_cache_of(&head(1, 7), 7));
    assert!(!is_cache_of(b"short", 7));
}

#[test]
fn an_operand_is_compared_from_its_end() {
    let check = |path: &str, operand: &str, expect: bool| {
        assert_eq!(
            is_named(path.as_bytes(), operand.as_bytes()),
            expect,
            "{path} {operand}"
        );
    };
    check("/tmp/x", "/tmp/x", true);
    check("/tmp/x", "x", true);
    check("/tmp/x", "./x", true);
    check("/tmp/x", "../tmp/./x", true);
    check("/tmp/x", "/tmp/a/../x", true);
    check("/tmp/x", "/var/x", false);
    check("/tmp/xx", "x", false);
    check("/tmp/x", "", false);
    check("/tmp/x", "..", false);
    // In a chroot.
    check("/jail/tmp/x", "/tmp/x", true);
}
