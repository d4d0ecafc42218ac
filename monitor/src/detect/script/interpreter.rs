//! Interpreters: how each is told what to run, and what it runs without being told.

use crate::containers::processes::Program;

/// Arguments looked at.
const ARGUMENTS_MAX: usize = 256;

/// A family of interpreters that read their command line alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// POSIX shells and their like.
    Shell,
    /// CPython and PyPy.
    Python,
    /// Perl.
    Perl,
    /// Ruby.
    Ruby,
    /// JavaScript: node, deno, bun.
    JavaScript,
    /// PHP.
    Php,
    /// Lua.
    Lua,
    /// Tcl.
    Tcl,
    /// The JVM.
    Java,
    /// AWK.
    Awk,
    /// Named by a `#!` line only.
    Other,
    /// Not an interpreter.
    None,
}

/// What the name of a program begins with, and what that makes it.
const NAMES: &[(&str, Class)] = &[
    ("python", Class::Python),
    ("pypy", Class::Python),
    ("perl", Class::Perl),
    ("ruby", Class::Ruby),
    ("node", Class::JavaScript),
    ("deno", Class::JavaScript),
    ("bun", Class::JavaScript),
    ("php", Class::Php),
    ("lua", Class::Lua),
    ("tclsh", Class::Tcl),
    ("java", Class::Java),
    ("awk", Class::Awk),
    ("gawk", Class::Awk),
    ("mawk", Class::Awk),
    ("guile", Class::Other),
    ("Rscript", Class::Other),
];
/// Names of shells, which are too short to be prefixes; a version may follow (`bash5`, `ksh93`).
const SHELLS: &[&str] = &[
    "sh", "ash", "bash", "rbash", "dash", "zsh", "ksh", "mksh", "lksh", "pdksh", "yash", "hush",
];
/// Programs that are many, by the name they are called.
const MULTICALL: &[&str] = &["busybox", "toybox"];

/// Options of a class.
struct Syntax {
    /// Letters whose value is the program text, so that no file is run.
    code: &'static [u8],
    /// Letters whose value is a file that is run.
    files: &'static [u8],
    /// `-c` takes the first operand, which comes after all options; `+` begins options as well, and
    /// `-s` reads commands from standard input.
    is_shell: bool,
    /// Letters with a value, in the same or in the next argument.
    values: &'static [u8],
    /// Long options whose value is the next argument.
    long_values: &'static [&'static str],
    /// Long options whose value is the program text.
    long_code: &'static [&'static str],
    /// Long options whose value is a file that is run.
    long_files: &'static [&'static str],
    /// One dash begins a long option.
    one_dash_long: bool,
    /// Words that may stand before the script.
    commands: &'static [&'static str],
    /// The first operand is the script, also beside files that options name.
    operand: bool,
    /// The first operand is the script, unless an option names a file.
    operand_instead: bool,
    /// Without script and code it runs its standard input.
    standard_input: bool,
}

const PLAIN: Syntax = Syntax {
    code: b"",
    files: b"",
    is_shell: false,
    values: b"",
    long_values: &[],
    long_code: &[],
    long_files: &[],
    one_dash_long: false,
    commands: &[],
    operand: true,
    operand_instead: false,
    standard_input: true,
};

const SHELL: Syntax = Syntax {
    is_shell: true,
    values: b"oO",
    long_files: &["--rcfile", "--init-file"],
    ..PLAIN
};
const PYTHON: Syntax = Syntax {
    code: b"cm",
    values: b"WXQ",
    long_values: &["--check-hash-based-pycs"],
    ..PLAIN
};
const PERL: Syntax = Syntax {
    code: b"eE",
    values: b"I",
    ..PLAIN
};
const RUBY: Syntax = Syntax {
    code: b"e",
    files: b"r",
    values: b"ICEK",
    long_values: &["--encoding", "--external-encoding", "--internal-encoding"],
    ..PLAIN
};
const JAVASCRIPT: Syntax = Syntax {
    code: b"ep",
    files: b"r",
    values: b"C",
    long_values: &[
        "--conditions",
        "--env-file",
        "--title",
        "--input-type",
        "--config",
    ],
    long_code: &["--eval", "--print"],
    long_files: &["--require", "--import", "--loader", "--experimental-loader"],
    commands: &["run", "test", "serve", "inspect"],
    ..PLAIN
};
const PHP: Syntax = Syntax {
    code: b"rBRE",
    files: b"fFz",
    values: b"cdSt",
    operand: false,
    operand_instead: true,
    ..PLAIN
};
const LUA: Syntax = Syntax {
    code: b"e",
    values: b"l",
    ..PLAIN
};
const TCL: Syntax = Syntax {
    long_values: &["-encoding"],
    one_dash_long: true,
    ..PLAIN
};
const JAVA: Syntax = Syntax {
    long_values: &[
        "-cp",
        "-classpath",
        "--class-path",
        "-p",
        "--module-path",
        "--add-modules",
        "--add-opens",
        "--add-exports",
        "--add-reads",
        "--upgrade-module-path",
        "--source",
    ],
    long_code: &["-m", "--module"],
    long_files: &["-jar"],
    one_dash_long: true,
    standard_input: false,
    operand: false,
    operand_instead: true,
    ..PLAIN
};
const AWK: Syntax = Syntax {
    files: b"fEi",
    values: b"Fv",
    long_values: &["--assign", "--field-separator"],
    long_files: &["--file", "--exec", "--include"],
    operand: false,
    standard_input: false,
    ..PLAIN
};
const OTHER: Syntax = Syntax {
    standard_input: false,
    ..PLAIN
};

impl Class {
    /// What a program is, by its file's name or, if it is many, by the name it was called; and its
    /// arguments behind that name.
    pub fn of(program: &Program) -> (Self, &[Vec<u8>]) {
        let mut arguments = program.arguments.as_slice();
        let mut take = || {
            let (first, rest) = arguments.split_first()?;
            arguments = rest;
            Some(base(first))
        };
        let mut name = program.name();
        let called = take();
        if is_multicall(name) {
            name = called.unwrap_or_default();
            // `busybox sh FILE`; a login shell is called `-sh`.
            if is_multicall(name) {
                name = take().unwrap_or_default();
            }
            name = name.strip_prefix(b"-").unwrap_or(name);
        }
        let class = by_name(name);
        let class = match class {
            Self::None if program.script.is_some() => Self::Other,
            class => class,
        };
        (class, arguments)
    }

    fn syntax(self) -> &'static Syntax {
        match self {
            Self::Shell => &SHELL,
            Self::Python => &PYTHON,
            Self::Perl => &PERL,
            Self::Ruby => &RUBY,
            Self::JavaScript => &JAVASCRIPT,
            Self::Php => &PHP,
            Self::Lua => &LUA,
            Self::Tcl => &TCL,
            Self::Java => &JAVA,
            Self::Awk => &AWK,
            Self::Other | Self::None => &OTHER,
        }
    }

    /// Whether it loads files of this name as modules. Shared libraries are seen when they are
    /// mapped.
    pub fn has_modules(self, path: &[u8]) -> bool {
        let name = base(path);
        let Some(dot) = name.iter().rposition(|byte| *byte == b'.') else {
            return false;
        };
        let extension = name.get(dot + 1..).unwrap_or_default();
        let extensions: &[&[u8]] = match self {
            Self::Python => &[b"py", b"pyc", b"pyw"],
            Self::Perl => &[b"pl", b"pm", b"ph", b"al"],
            Self::Ruby => &[b"rb"],
            Self::JavaScript => &[b"js", b"mjs", b"cjs", b"ts", b"mts", b"cts", b"jsx", b"tsx"],
            Self::Php => &[b"php", b"inc", b"phar", b"phtml"],
            Self::Lua => &[b"lua", b"luac"],
            Self::Tcl => &[b"tcl", b"tm"],
            Self::Java => &[b"jar", b"class", b"war"],
            Self::Awk => &[b"awk"],
            Self::Shell | Self::Other | Self::None => &[],
        };
        extensions.contains(&extension)
    }
}

fn by_name(name: &[u8]) -> Class {
    let version = name
        .iter()
        .rposition(|byte| !byte.is_ascii_digit() && *byte != b'.' && *byte != b'-')
        .map_or(0, |last| last + 1);
    let bare = name.get(..version).unwrap_or(name);
    if SHELLS.iter().any(|shell| shell.as_bytes() == bare) {
        return Class::Shell;
    }
    NAMES
        .iter()
        .find(|(prefix, _)| name.starts_with(prefix.as_bytes()))
        .map_or(Class::None, |(_, class)| *class)
}

fn is_multicall(name: &[u8]) -> bool {
    MULTICALL
        .iter()
        .any(|multicall| name.starts_with(multicall.as_bytes()))
}

fn base(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or(path)
}

/// What an interpreter was told to run.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Orders<'a> {
    /// Files.
    pub(super) files: Vec<&'a [u8]>,
    /// Its standard input.
    pub(super) standard_input: bool,
}

impl<'a> Orders<'a> {
    /// Reads a command line behind the interpreter's name.
    pub(super) fn read(class: Class, arguments: &'a [Vec<u8>]) -> Self {
        let syntax = class.syntax();
        let mut line = Line {
            syntax,
            files: Vec::new(),
            has_code: false,
            forces_standard_input: false,
            operand: None,
        };
        line.read(arguments);
        let mut files = line.files;
        let mut standard_input = line.forces_standard_input;
        let takes_operand = syntax.operand || (syntax.operand_instead && files.is_empty());
        match line.operand {
            Some(b"-") => standard_input = true,
            Some(operand) if takes_operand && !line.has_code && !standard_input => {
                files.push(operand);
            }
            None if !line.has_code && files.is_empty() => standard_input = true,
            _ => {}
        }
        Self {
            files,
            standard_input: standard_input && syntax.standard_input,
        }
    }
}

struct Line<'a> {
    syntax: &'static Syntax,
    files: Vec<&'a [u8]>,
    has_code: bool,
    forces_standard_input: bool,
    operand: Option<&'a [u8]>,
}

impl<'a> Line<'a> {
    fn read(&mut self, arguments: &'a [Vec<u8>]) {
        let is_shell = self.syntax.is_shell;
        let mut arguments = arguments.iter().map(Vec::as_slice).take(ARGUMENTS_MAX);
        while let Some(argument) = arguments.next() {
            let is_option = argument.len() > 1
                && (argument.starts_with(b"-") || (is_shell && argument.starts_with(b"+")));
            if argument == b"--" {
                self.operand = arguments.next();
                return;
            }
            if !is_option {
                if self.is_command(argument) {
                    continue;
                }
                self.operand = Some(argument);
                return;
            }
            if argument.starts_with(b"--") || self.syntax.one_dash_long {
                self.long(argument, &mut arguments);
            } else {
                self.letters(argument.get(1..).unwrap_or_default(), &mut arguments);
            }
            // What follows code are its arguments, in most languages.
            if self.has_code && !is_shell {
                return;
            }
        }
    }

    fn is_command(&self, argument: &[u8]) -> bool {
        self.syntax
            .commands
            .iter()
            .any(|command| command.as_bytes() == argument)
    }

    fn long(&mut self, argument: &'a [u8], rest: &mut impl Iterator<Item = &'a [u8]>) {
        let (name, attached) = match argument.iter().position(|byte| *byte == b'=') {
            Some(at) => (
                argument.get(..at).unwrap_or_default(),
                argument.get(at + 1..),
            ),
            None => (argument, None),
        };
        let is_in = |words: &[&str]| words.iter().any(|word| word.as_bytes() == name);
        if is_in(self.syntax.long_files) {
            self.files.extend(attached.or_else(|| rest.next()));
        } else if is_in(self.syntax.long_code) {
            self.has_code = true;
        } else if is_in(self.syntax.long_values) && attached.is_none() {
            rest.next();
        }
    }

    /// Letters of one argument; one with a value ends it.
    fn letters(&mut self, letters: &'a [u8], rest: &mut impl Iterator<Item = &'a [u8]>) {
        for (at, letter) in letters.iter().enumerate() {
            let attached = letters.get(at + 1..).filter(|value| !value.is_empty());
            if self.syntax.is_shell && *letter == b'c' {
                self.has_code = true;
            } else if self.syntax.code.contains(letter) {
                self.has_code = true;
                return;
            } else if self.syntax.files.contains(letter) {
                self.files.extend(attached.or_else(|| rest.next()));
                return;
            } else if self.syntax.values.contains(letter) {
                if attached.is_none() {
                    rest.next();
                }
                return;
            } else if self.syntax.is_shell && *letter == b's' {
                self.forces_standard_input = true;
            }
        }
    }
}
