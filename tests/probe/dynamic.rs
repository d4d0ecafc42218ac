//! A program linked to the C library as most programs are, which loads the libraries that are its
//! arguments. Compiled by itself, since the flags of `probe` make static programs.

use std::{
    env,
    ffi::{CStr, CString, c_char, c_int, c_void},
    os::unix::ffi::OsStringExt as _,
    process::ExitCode,
};

unsafe extern "C" {
    fn dlopen(file: *const c_char, mode: c_int) -> *mut c_void;
    fn dlerror() -> *const c_char;
}

/// Resolves all symbols at once.
const RTLD_NOW: c_int = 2;

fn main() -> ExitCode {
    for library in env::args_os().skip(1) {
        let Ok(name) = CString::new(library.into_vec()) else {
            return ExitCode::FAILURE;
        };
        // SAFETY: a string that ends with NUL; the libraries of the tests do nothing when loaded.
        if unsafe { dlopen(name.as_ptr(), RTLD_NOW) }.is_null() {
            // SAFETY: after a failure there is a message, valid until the next call.
            let why = unsafe { CStr::from_ptr(dlerror()) };
            eprintln!("dynamic: {}", why.to_string_lossy());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
