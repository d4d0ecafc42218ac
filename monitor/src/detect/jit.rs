//! Compilers at run time. They write machine code to files without a name and map those executable,
//! as a loader of foreign code in memory does; what they write is no ELF file.

use crate::{containers::processes::Program, sensor::elf};

/// A program of the image that maps files without a name executable.
struct Compiler {
    /// What its file name begins with; empty for any program.
    program: &'static str,
    /// What the name of the mapped file begins with; empty for any.
    file: &'static str,
}

const COMPILERS: &[Compiler] = &[
    // HotSpot's code cache on large pages or in shared memory.
    Compiler {
        program: "java",
        file: "",
    },
    // W^X by two mappings of `memfd:doublemapper`.
    Compiler {
        program: "dotnet",
        file: "",
    },
    // The same of a self-contained application, which has a name of its own.
    Compiler {
        program: "",
        file: "memfd:doublemapper",
    },
    // V8's and JavaScriptCore's shared code spaces.
    Compiler {
        program: "node",
        file: "",
    },
    Compiler {
        program: "deno",
        file: "",
    },
    Compiler {
        program: "bun",
        file: "",
    },
    // HHVM and PHP's opcache with shared memory.
    Compiler {
        program: "php",
        file: "",
    },
    Compiler {
        program: "pypy",
        file: "",
    },
    // BEAM's assembler maps its code twice.
    Compiler {
        program: "beam.smp",
        file: "",
    },
    // libffi's closures where memory may not be writable and executable, in any program.
    Compiler {
        program: "",
        file: "memfd:libffi",
    },
    Compiler {
        program: "",
        file: "ffi",
    },
];

/// Programs that compile to memory without a file, by what their file names begin with, beside those
/// that do so to files.
const PROGRAMS: &[&str] = &[
    "ruby", "luajit", "julia", "mono", "qemu-", "wasmtime", "wasmer", "Rscript",
];

/// Libraries that compile at run time, by what their file names begin with: HotSpot, OpenJ9, .NET,
/// Mono, V8, SpiderMonkey, JavaScriptCore, LLVM, GCC's, PCRE's matcher, libffi's closures, LuaJIT,
/// Wasmtime, Ruby. A container that brings such a library by itself is told of that library.
const LIBRARIES: &[&str] = &[
    "libjvm.",
    "libj9jit",
    "libcoreclr.",
    "libclrjit.",
    "libmono",
    "libnode.",
    "libv8",
    "libmozjs",
    "libjavascriptcore",
    "libLLVM",
    "libgccjit.",
    "libpcre.",
    "libpcre2-",
    "libffi.",
    "libluajit",
    "libwasmtime.",
    "libruby",
];

/// Whether a process is known to compile at run time: its program is the image's and one that does,
/// or it has mapped a library that does.
pub fn is_compiler(program: Option<&Program>, libraries: &[Vec<u8>]) -> bool {
    let Some(program) = program.filter(|program| program.is_of_image()) else {
        return false;
    };
    let begins = |name: &[u8], starts: &str| name.starts_with(starts.as_bytes());
    let of_files = COMPILERS.iter().map(|compiler| compiler.program);
    let mut programs = of_files
        .filter(|name| !name.is_empty())
        .chain(PROGRAMS.iter().copied());
    programs.any(|name| begins(program.name(), name))
        || libraries.iter().any(|library| is_compiling(library))
}

/// The same of a process of which it is not known what it has mapped: its image holds a library that
/// compiles.
pub fn may_be_compiler(
    program: Option<&Program>,
    mut image: impl Iterator<Item = Vec<u8>>,
) -> bool {
    program.is_some_and(Program::is_of_image) && image.any(|path| is_compiling(&path))
}

fn is_compiling(library: &[u8]) -> bool {
    let library = name(library);
    LIBRARIES
        .iter()
        .any(|known| library.starts_with(known.as_bytes()))
}

/// Shared memory without a file (`shmem_zero_setup`, hugetlb) has these paths in the kernel's own
/// filesystems. It is no more than private memory, which is not judged either.
const ANONYMOUS: [&[u8]; 2] = [b"/dev/zero", b"/anon_hugepage"];

/// Whether a file without a name, mapped executable by a process that executes `program`, is what a
/// compiler made. `path` is the file's in its filesystem, `head` its first bytes, empty if they
/// could not be read.
pub fn is_compiled(program: Option<&Program>, path: &[u8], head: &[u8]) -> bool {
    if head.starts_with(elf::MAGIC) {
        return false;
    }
    if ANONYMOUS.contains(&path) {
        return true;
    }
    let Some(program) = program.filter(|program| program.is_of_image()) else {
        return false;
    };
    let (program, file) = (program.name(), name(path));
    COMPILERS.iter().any(|compiler| {
        program.starts_with(compiler.program.as_bytes())
            && file.starts_with(compiler.file.as_bytes())
    })
}

fn name(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containers::processes::tests::program;

    #[test]
    fn compilers_to_memory_are_known_by_program_or_library() {
        let check = |executable: &str, libraries: &[&str], expect: bool| {
            let program = program(executable, "x");
            let libraries: Vec<Vec<u8>> = libraries
                .iter()
                .map(|library| library.as_bytes().to_vec())
                .collect();
            let found = is_compiler(Some(&program), &libraries);
            assert_eq!(found, expect, "{executable} {libraries:?}");
            program.judged(false);
            assert!(!is_compiler(Some(&program), &libraries), "{executable}");
        };
        check("/usr/bin/node", &[], true);
        check("/usr/bin/java", &["/lib/libc.so.6"], true);
        check("/usr/bin/postgres", &["/usr/lib/libLLVM-14.so.1"], true);
        check("/usr/bin/postgres", &["/lib/libc.so.6"], false);
        check("/usr/bin/python3.11", &["/lib/libffi.so.8"], true);
        check("/tmp/x", &[], false);
        assert!(!is_compiler(None, &[b"/lib/libffi.so.8".to_vec()]));

        let program = program("/bin/x", "x");
        let image = |library: &str| std::iter::once(library.as_bytes().to_vec());
        assert!(may_be_compiler(
            Some(&program),
            image("/lib/libLLVM-14.so.1")
        ));
        assert!(!may_be_compiler(Some(&program), image("/lib/libc.so.6")));
        program.judged(false);
        assert!(!may_be_compiler(
            Some(&program),
            image("/lib/libLLVM-14.so.1")
        ));
    }

    #[test]
    fn compilers_of_the_image_are_known_by_what_they_map() {
        let check = |executable: &str, path: &str, head: &[u8], expect: bool| {
            let program = program(executable, "x");
            let seen = is_compiled(Some(&program), path.as_bytes(), head);
            assert_eq!(seen, expect, "{executable} {path}");
            // The same by a program that is not the image's.
            program.judged(false);
            let is_anonymous = path == "/dev/zero" && expect;
            let seen = is_compiled(Some(&program), path.as_bytes(), head);
            assert_eq!(seen, is_anonymous, "{executable} {path}");
        };
        check("/usr/lib/jvm/bin/java", "/memfd:java", b"", true);
        check(
            "/usr/lib/jvm/bin/java",
            "/memfd:java",
            b"\x7fELF\x02",
            false,
        );
        check("/app/own", "/memfd:doublemapper", b"\0\0\0\0", true);
        check("/usr/bin/python3.11", "/memfd:libffi", b"\x55", true);
        check("/usr/bin/python3.11", "/tmp/ffiAbC123", b"\x55", true);
        check("/usr/bin/python3.11", "/memfd:x", b"\x55", false);
        check("/usr/bin/python3.11", "/tmp/x", b"", false);
        check("/usr/bin/anything", "/dev/zero", b"", true);
        check("/usr/bin/anything", "/dev/zero", b"\x7fELF", false);
        assert!(!is_compiled(None, b"/memfd:libffi", b""));
    }
}
