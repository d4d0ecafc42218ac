//! Secrets are taken out of arguments before they are kept anywhere.
//!
//! What counts as one: the value of an option, variable or header whose name says so
//! (`--password=…`, `--token …`, `API_KEY=…`, `Authorization: …`), the short options of a few
//! well-known programs (`mysql -p…`), the password in a URL, and what is recognised by its own
//! shape: AWS access keys, JSON web tokens, private keys. A secret under an innocent name is not
//! found; the name of a thing that only points to a secret (`--password-file`) hides nothing.
//! Where a value ends is guessed towards hiding more.

/// What stands where a secret was.
pub(super) const MARKER: &[u8] = b"[redacted]";

/// `arguments` without secrets. Each secret grows its argument by at most the marker's length;
/// redacting again changes nothing.
pub(super) fn redact(arguments: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let program = arguments.first().map_or(&[][..], |path| {
        path.rsplit(|&byte| byte == b'/').next().unwrap_or_default()
    });
    let mut redacted: Vec<Vec<u8>> = Vec::with_capacity(arguments.len());
    let mut before: &[u8] = &[];
    for argument in arguments {
        let is_code = redacted.last().is_some_and(|before| is_code_flag(before));
        redacted.push(
            if takes_secret(program, before) && !argument.starts_with(b"--") {
                hide(before, argument)
            } else if let Some(flag) = joined_secret(program, argument) {
                [flag, MARKER].concat()
            } else {
                scan(argument, is_code)
            },
        );
        before = argument;
    }
    redacted
}

/// Whether a variable, as `NAME=value`, holds a secret.
pub(crate) fn holds_secret(variable: &[u8]) -> bool {
    scan(variable, false) != variable
}

/// Whether the argument after `flag` is a secret.
fn takes_secret(program: &[u8], flag: &[u8]) -> bool {
    if flag.starts_with(b"-") && flag.iter().all(|&byte| is_name(byte)) && is_secret_name(flag) {
        return true;
    }
    match flag {
        b"-u" | b"--user" | b"-U" | b"--proxy-user" => program == b"curl",
        b"-p" => matches!(
            program,
            b"sshpass" | b"docker" | b"podman" | b"nerdctl" | b"helm"
        ),
        b"-a" => program == b"redis-cli",
        b"-w" => program.starts_with(b"ldap"),
        _ => false,
    }
}

/// The flag of an argument that joins flag and secret without a sign between them.
fn joined_secret<'a>(program: &[u8], argument: &'a [u8]) -> Option<&'a [u8]> {
    let joins = match program {
        b"sshpass" => true,
        _ => program.starts_with(b"mysql") || program.starts_with(b"mariadb"),
    };
    let (flag, value) = argument.split_at_checked(2)?;
    (joins && flag == b"-p" && !value.is_empty()).then_some(flag)
}

/// The value after `flag` without its secret: curl's `user:password` keeps the user.
fn hide(flag: &[u8], value: &[u8]) -> Vec<u8> {
    if value.is_empty() {
        return Vec::new();
    }
    if !matches!(flag, b"-u" | b"--user" | b"-U" | b"--proxy-user") {
        return MARKER.to_vec();
    }
    match value
        .iter()
        .position(|&byte| byte == b':')
        .and_then(|at| value.split_at_checked(at))
    {
        Some((user, _)) => [&scan(user, false), &b":"[..], MARKER].concat(),
        None => scan(value, false),
    }
}

/// `text` without the secrets that it shows by itself. Hiding one can bring another to light (what
/// was joined to it now stands alone), so it is repeated until nothing changes; every round that
/// changes something leaves fewer bytes outside of markers.
fn scan(text: &[u8], is_code: bool) -> Vec<u8> {
    let mut text = text.to_vec();
    loop {
        let next = Scan {
            text: &text,
            at: 0,
            is_code,
            out: Vec::new(),
        }
        .run();
        if next == text {
            return next;
        }
        text = next;
    }
}

/// `sh -c`, `bash -lc`, `python3 -c`: what follows is a text of many words, not one value.
fn is_code_flag(flag: &[u8]) -> bool {
    matches!(flag, [b'-', letters @ .., b'c' | b'e'] if letters.iter().all(u8::is_ascii_alphabetic))
}

/// Whether a value of this name is a secret.
fn is_secret_name(name: &[u8]) -> bool {
    const WORDS: [&str; 14] = [
        "password",
        "passwords",
        "passwd",
        "passphrase",
        "secret",
        "secrets",
        "token",
        "tokens",
        "apikey",
        "accesskey",
        "secretkey",
        "privatekey",
        "credential",
        "credentials",
    ];
    /// A name that ends so says where a secret is, or something else of it.
    const POINTERS: [&str; 12] = [
        "file",
        "path",
        "name",
        "dir",
        "directory",
        "ttl",
        "type",
        "stdin",
        "length",
        "url",
        "uri",
        "prompt",
    ];
    let name = name.to_ascii_lowercase();
    let segments: Vec<&str> = name
        .split(|&byte| matches!(byte, b'-' | b'_' | b'.'))
        .filter(|segment| !segment.is_empty())
        .filter_map(|segment| str::from_utf8(segment).ok())
        .collect();
    if segments.last().is_none_or(|last| POINTERS.contains(last)) {
        return false;
    }
    let is_option = name.starts_with(b"-");
    let says_so = |word: &str| WORDS.iter().any(|end| word.ends_with(end));
    segments.iter().any(|segment| says_so(segment) || *segment == "authorization")
        || segments.windows(2).any(|pair| says_so(&pair.concat()))
        || segments.contains(&"pass")
        // PWD alone is the shell's working directory.
        || (segments.contains(&"pwd") && (is_option || segments.len() > 1))
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

fn is_base64url(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

/// One pass over an argument, from left to right.
struct Scan<'a> {
    text: &'a [u8],
    at: usize,
    is_code: bool,
    out: Vec<u8>,
}

impl Scan<'_> {
    fn run(mut self) -> Vec<u8> {
        while let Some(&byte) = self.text.get(self.at) {
            let known = self.private_key()
                || (self.at_word_start()
                    && (self.aws_key() || self.web_token() || self.named_value()))
                || self.url_password();
            if !known {
                self.out.push(byte);
                self.at += 1;
            }
        }
        self.out
    }

    fn rest(&self) -> &[u8] {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn byte_before(&self) -> Option<u8> {
        self.out.last().copied()
    }

    fn at_word_start(&self) -> bool {
        self.byte_before().is_none_or(|byte| !is_name(byte))
    }

    /// Copies `kept` bytes and puts the marker for the `hidden` ones after them.
    fn replace(&mut self, kept: usize, hidden: usize) -> bool {
        if hidden == 0 {
            return false;
        }
        self.out
            .extend_from_slice(self.text.get(self.at..self.at + kept).unwrap_or_default());
        self.out.extend_from_slice(MARKER);
        self.at += kept + hidden;
        true
    }

    /// A PEM block, to its end or to that of the argument.
    fn private_key(&mut self) -> bool {
        const BEGIN: &[u8] = b"-----BEGIN ";
        const LABEL_END: &[u8] = b"PRIVATE KEY-----";
        let rest = self.rest();
        if !rest.starts_with(BEGIN) {
            return false;
        }
        // Labels are short (`OPENSSH `, `ENCRYPTED `).
        let label = rest
            .get(BEGIN.len()..rest.len().min(64))
            .unwrap_or_default();
        let Some(begin) = find(label, LABEL_END) else {
            return false;
        };
        let body = BEGIN.len() + begin + LABEL_END.len();
        let hidden = match find(rest.get(body..).unwrap_or_default(), LABEL_END) {
            Some(end) => body + end + LABEL_END.len(),
            None => rest.len(),
        };
        self.replace(0, hidden)
    }

    /// `AKIA` or `ASIA` and 16 capitals or digits.
    fn aws_key(&mut self) -> bool {
        let rest = self.rest();
        let is_key = (rest.starts_with(b"AKIA") || rest.starts_with(b"ASIA"))
            && count(rest, |byte| {
                byte.is_ascii_uppercase() || byte.is_ascii_digit()
            }) == 20
            && !rest.get(20).is_some_and(|&byte| is_name(byte));
        is_key && self.replace(0, 20)
    }

    /// `eyJ`, the beginning of a JSON object in base64, and at least one more part after a dot.
    fn web_token(&mut self) -> bool {
        let rest = self.rest();
        if !rest.starts_with(b"eyJ") {
            return false;
        }
        let length = count(rest, |byte| is_base64url(byte) || byte == b'.');
        let token = rest.get(..length).unwrap_or_default();
        let mut parts = token.split(|&byte| byte == b'.').map(<[u8]>::len);
        let is_token = parts.next().is_some_and(|header| header >= 10)
            && parts.next().is_some_and(|payload| payload >= 4);
        is_token && self.replace(0, length)
    }

    /// The value of an option, a variable, a header or a JSON key whose name says that it is a
    /// secret.
    fn named_value(&mut self) -> bool {
        let name = count(self.rest(), is_name);
        let rest = self.rest();
        if !is_secret_name(rest.get(..name).unwrap_or_default()) {
            return false;
        }
        let quoted = usize::from(matches!(rest.get(name), Some(b'"' | b'\'')));
        let mut value = name + quoted;
        let is_option = rest.starts_with(b"-");
        let is_whole = self.at == 0 && !self.is_code;
        let spaces = count(rest.get(value..).unwrap_or_default(), |byte| byte == b' ');
        match rest.get(value) {
            Some(b'=') => value += 1,
            Some(b':') => {
                let spaces = count(rest.get(value + 1..).unwrap_or_default(), |b| b == b' ');
                // `secret:/run/x` is a mount, `Authorization:Basic` a header.
                if spaces == 0 && quoted == 0 && !ends_with_authorization(rest, name) {
                    return false;
                }
                value += 1 + spaces;
                let hidden = match rest.get(value) {
                    Some(b'"' | b'\'') => self.value_length(value),
                    _ if quoted == 1 => self.value_length(value),
                    _ => self.header_length(value),
                };
                let quote = usize::from(matches!(self.rest().get(value), Some(b'"' | b'\'')));
                return self.replace(value + quote, hidden.saturating_sub(quote));
            }
            // In a text of many words the next one is the option's.
            Some(b' ') if is_option && (!is_whole) => {
                value += spaces;
                if rest.get(value) == Some(&b'-') {
                    return false;
                }
            }
            _ => return false,
        }
        let hidden = if is_whole {
            rest.len() - value
        } else {
            self.value_length(value)
        };
        let quote = usize::from(!is_whole && matches!(self.rest().get(value), Some(b'"' | b'\'')));
        self.replace(value + quote, hidden.saturating_sub(quote))
    }

    /// The length of the value at `start` (from `at`): a quoted one with its opening quote, or up
    /// to what ends a word in a shell, a query or a JSON text.
    fn value_length(&self, start: usize) -> usize {
        let value = self.rest().get(start..).unwrap_or_default();
        match value.split_first() {
            Some((&quote @ (b'"' | b'\''), rest)) => 1 + count(rest, |byte| byte != quote),
            _ => count(value, |byte| {
                !byte.is_ascii_whitespace() && !matches!(byte, b'"' | b'\'' | b';' | b'&' | b'|')
            }),
        }
    }

    /// The length of the header value at `start` (from `at`): to the quote that was opened right
    /// before its name, else to the end of the line.
    fn header_length(&self, start: usize) -> usize {
        let quote = self
            .byte_before()
            .filter(|byte| matches!(byte, b'"' | b'\''));
        let value = self.rest().get(start..).unwrap_or_default();
        count(value, |byte| {
            byte != b'\n' && byte != b'\r' && Some(byte) != quote
        })
    }

    /// `scheme://user:password@host`: the password.
    fn url_password(&mut self) -> bool {
        let rest = self.rest();
        if !rest.starts_with(b"://") {
            return false;
        }
        let authority = count(rest.get(3..).unwrap_or_default(), |byte| {
            !byte.is_ascii_whitespace() && !matches!(byte, b'/' | b'?' | b'#' | b'"' | b'\'')
        });
        let authority = rest.get(3..3 + authority).unwrap_or_default();
        let Some(at) = authority.iter().rposition(|&byte| byte == b'@') else {
            return false;
        };
        let Some(colon) = authority.iter().position(|&byte| byte == b':') else {
            return false;
        };
        colon < at && self.replace(3 + colon + 1, at - colon - 1)
    }
}

fn ends_with_authorization(text: &[u8], length: usize) -> bool {
    text.get(..length)
        .is_some_and(|name| name.to_ascii_lowercase().ends_with(b"authorization"))
}

/// How many bytes `text` begins with that are so.
fn count(text: &[u8], is_so: impl Fn(u8) -> bool) -> usize {
    text.iter().take_while(|&&byte| is_so(byte)).count()
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests;
