use proptest::prelude::*;

use super::*;

fn redacted(arguments: &[&str]) -> Vec<String> {
    let arguments: Vec<_> = arguments
        .iter()
        .map(|text| text.as_bytes().to_vec())
        .collect();
    redact(&arguments)
        .iter()
        .map(|text| String::from_utf8_lossy(text).into_owned())
        .collect()
}

#[test]
fn secrets_in_an_argument_are_hidden() {
    let check = |argument: &str, expect: &str| {
        let said = redacted(&["program", argument]);
        assert_eq!(said, ["program", expect], "{argument}");
    };
    check("--password=hunter2", "--password=[redacted]");
    check("--password=two words; and more", "--password=[redacted]");
    check("-password=x", "-password=[redacted]");
    check("--db.password=x", "--db.password=[redacted]");
    check("--api-key=x", "--api-key=[redacted]");
    check("PASSWORD=x", "PASSWORD=[redacted]");
    check("POSTGRES_PASSWORD=x", "POSTGRES_PASSWORD=[redacted]");
    check("MYSQL_PWD=x", "MYSQL_PWD=[redacted]");
    check("DB_PASS=x", "DB_PASS=[redacted]");
    check("SECRET_KEY_BASE=x", "SECRET_KEY_BASE=[redacted]");
    check(
        "aws_secret_access_key=x",
        "aws_secret_access_key=[redacted]",
    );
    check("GITHUB_TOKEN=x", "GITHUB_TOKEN=[redacted]");
    check("Authorization: Bearer abc", "Authorization: [redacted]");
    check("authorization:Basic abc=", "authorization:[redacted]");
    check(
        "Proxy-Authorization: Digest a=\"b\", c=\"d\"",
        "Proxy-Authorization: [redacted]",
    );
    check("X-Vault-Token: s.abc", "X-Vault-Token: [redacted]");
    check(
        "http://user:pass@host/path",
        "http://user:[redacted]@host/path",
    );
    check("amqp://user:p@ss@host", "amqp://user:[redacted]@host");
    check(
        "see postgres://u:p@h/d?x=1 now",
        "see postgres://u:[redacted]@h/d?x=1 now",
    );
    check(
        "https://x/?token=abc&y=1",
        "https://x/?token=[redacted]&y=1",
    );
    check("AKIAIOSFODNN7EXAMPLE", "[redacted]");
    check("key:ASIAIOSFODNN7EXAMPLE,", "key:[redacted],");
    check("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "[redacted]");
    check(
        "x -----BEGIN RSA PRIVATE KEY-----\nAA\n-----END RSA PRIVATE KEY----- y",
        "x [redacted] y",
    );
    check("-----BEGIN PRIVATE KEY-----\nAA", "[redacted]");
    check(
        r#"{"password": "a b", "user": "c"}"#,
        r#"{"password": "[redacted]", "user": "c"}"#,
    );
    check(r#"{"token":"a"}"#, r#"{"token":"[redacted]"}"#);
}

#[test]
fn what_is_no_secret_stays() {
    for argument in [
        "",
        "-p",
        "-p8080",
        "--password",
        "--password=",
        "--password-file=/run/secrets/password",
        "--token-ttl=1h",
        "--tokenizer=bert",
        "--passive=1",
        "--bypass=1",
        "--secret-name=web",
        "PWD=/root",
        "OLDPWD=/root",
        "/run/secrets/token",
        "-v",
        "secret:/run/x",
        "http://host:80/a@b",
        "https://user@host/",
        "AKIAIOSFODNN7EXAMPL",
        "AKIAIOSFODNN7EXAMPLEX",
        "eyJ.x",
        "-----BEGIN CERTIFICATE-----",
        "monkey=1",
        "keyboard=de",
    ] {
        assert_eq!(redacted(&["program", argument]), ["program", argument]);
    }
}

#[test]
fn a_secret_may_be_the_next_argument() {
    let check = |arguments: &[&str], expect: &[&str]| {
        assert_eq!(redacted(arguments), expect);
    };
    check(
        &["p", "--token", "x", "y"],
        &["p", "--token", "[redacted]", "y"],
    );
    check(&["p", "-password", "-x"], &["p", "-password", "[redacted]"]);
    check(
        &["p", "--password", "--user", "x"],
        &["p", "--password", "--user", "x"],
    );
    check(
        &["p", "--password-file", "x"],
        &["p", "--password-file", "x"],
    );
    check(&["p", "token", "x"], &["p", "token", "x"]);
    check(
        &["/usr/bin/mysql", "-phunter2"],
        &["/usr/bin/mysql", "-p[redacted]"],
    );
    check(&["mysqldump", "-p", "db"], &["mysqldump", "-p", "db"]);
    check(
        &["sshpass", "-p", "x", "ssh"],
        &["sshpass", "-p", "[redacted]", "ssh"],
    );
    check(
        &["redis-cli", "-a", "x"],
        &["redis-cli", "-a", "[redacted]"],
    );
    check(&["curl", "-u", "me:x"], &["curl", "-u", "me:[redacted]"]);
    check(&["curl", "-u", "me"], &["curl", "-u", "me"]);
    check(&["tar", "-p", "x"], &["tar", "-p", "x"]);
}

#[test]
fn in_code_a_value_ends_with_its_word() {
    let check = |code: &str, expect: &str| {
        assert_eq!(redacted(&["sh", "-ec", code]), ["sh", "-ec", expect]);
    };
    check("TOKEN=x; wget evil", "TOKEN=[redacted]; wget evil");
    check("PASSWORD='a b' run --x", "PASSWORD='[redacted]' run --x");
    check("run --password x --y", "run --password [redacted] --y");
    check("run --password --y", "run --password --y");
    check(
        "curl -H 'Authorization: Bearer a b' http://h",
        "curl -H 'Authorization: [redacted]' http://h",
    );
    check(
        "echo a | psql postgres://u:p@h",
        "echo a | psql postgres://u:[redacted]@h",
    );
}

fn fragment() -> impl Strategy<Value = Vec<u8>> {
    const FRAGMENTS: [&str; 27] = [
        "--password",
        "token",
        "SECRET",
        "=",
        ":",
        " ",
        "'",
        "\"",
        "x",
        "://",
        "user",
        "@",
        "/",
        "AKIAIOSFODNN7EXAMPLE",
        "eyJhbGciOiJIUzI1NiJ9",
        ".",
        "-----BEGIN ",
        "PRIVATE KEY-----",
        "-----END ",
        "Authorization",
        "[redacted]",
        "-",
        "\n",
        ";",
        "&",
        "-p",
        "curl",
    ];
    prop_oneof![
        8 => prop::sample::select(&FRAGMENTS[..]).prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..4),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]
    #[test]
    fn redacting_is_bounded_and_idempotent(
        program in prop::sample::select(vec!["sh", "mysql", "curl", "sshpass"]),
        mut arguments in prop::collection::vec(
            prop::collection::vec(fragment(), 0..12).prop_map(|parts| parts.concat()), 0..4),
    ) {
        arguments.insert(0, program.as_bytes().to_vec());
        let once = redact(&arguments);
        prop_assert_eq!(once.len(), arguments.len());
        for (before, after) in arguments.iter().zip(&once) {
            let markers = after.windows(MARKER.len()).filter(|part| *part == MARKER).count();
            prop_assert!(after.len() <= before.len() + markers * MARKER.len());
        }
        prop_assert_eq!(redact(&once), once);
    }
}
