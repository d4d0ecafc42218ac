#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;

use proptest::prelude::*;

use super::{super::elf::tests::file as elf, *};

/// An image in memory.
#[derive(Default)]
struct Image(HashMap<Vec<u8>, (FileKind, Vec<u8>)>);

impl Image {
    fn file(mut self, path: &str, bytes: impl Into<Vec<u8>>) -> Self {
        let entry = (FileKind::Regular, bytes.into());
        self.0.insert(path.into(), entry);
        self.directories(path)
    }

    fn link(mut self, path: &str, target: &str) -> Self {
        let entry = (FileKind::Symlink(target.into()), Vec::new());
        self.0.insert(path.into(), entry);
        self.directories(path)
    }

    fn directories(mut self, path: &str) -> Self {
        let ends = path.match_indices('/').skip(1);
        for (end, _) in ends {
            let directory = path.get(..end).unwrap();
            let entry = (FileKind::Directory, Vec::new());
            self.0.entry(directory.into()).or_insert(entry);
        }
        self
    }
}

impl ImageFiles for Image {
    fn kind(&mut self, path: &[u8]) -> Option<FileKind> {
        self.0.get(path).map(|(kind, _)| kind.clone())
    }

    fn read(&mut self, path: &[u8], max: usize) -> Option<Vec<u8>> {
        let (kind, bytes) = self.0.get(path)?;
        let bytes = bytes.get(..max).unwrap_or(bytes);
        (*kind == FileKind::Regular).then(|| bytes.to_vec())
    }

    fn sha256(&mut self, path: &[u8]) -> Option<Sha256> {
        self.0.get(path).map(|(_, bytes)| Sha256::of(bytes))
    }
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn image() -> Image {
    Image::default()
        .file(
            "/usr/bin/server",
            elf(
                Some("/lib64/ld.so"),
                &["libz.so.1", "libgone.so"],
                Some("$ORIGIN/../lib/own"),
            ),
        )
        .file("/usr/lib/own/libz.so.1.2", elf(None, &["libc.so.6"], None))
        .link("/usr/lib/own/libz.so.1", "libz.so.1.2")
        .file("/usr/lib64/ld.so", elf(None, &[], None))
        .link("/lib64", "usr/lib64")
        .file("/opt/libs/libc.so.6", elf(None, &["libz.so.1"], None))
        .file("/etc/ld.so.conf", "# none\n/opt/libs\n")
        .file(
            "/usr/bin/dash",
            elf(Some("/lib64/ld.so"), &["libc.so.6"], None),
        )
        .link("/bin", "usr/bin")
        .link("/usr/bin/sh", "dash")
        .file("/app/run", "#!/bin/sh -e\nexec server\n")
        .link("/app/again", "../../app/run")
        .link("/loop", "/loop")
}

fn programs(behaviour: &Behaviour) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let programs = behaviour.executables.iter();
    programs
        .map(|(path, it)| {
            (
                text(path),
                it.shapes.iter().flatten().next().unwrap().to_string(),
            )
        })
        .collect()
}

#[test]
fn what_starts_is_resolved() {
    let check = |entrypoint: &str, command: &str, expect: Option<(&str, &str)>| {
        let config = ImageConfig {
            entrypoint: words(entrypoint),
            command: words(command),
            working_dir: "/app".to_owned(),
            ..ImageConfig::default()
        };
        let seed = seed(&config, &mut image());
        let expect: Vec<(String, String)> = expect
            .iter()
            .map(|(path, shape)| (path.to_string(), shape.to_string()))
            .collect();
        assert_eq!(programs(&seed.whole.main), expect, "{entrypoint} {command}");
    };
    check("server", "--port 80", Some(("/usr/bin/server", "--port *")));
    check("", "/bin/server", Some(("/usr/bin/server", "")));
    check("sh -e", "x", Some(("/usr/bin/dash", "[sh] -e *")));
    check(
        "./run",
        "--fast",
        Some(("/usr/bin/dash", "[sh] -e * --fast")),
    );
    check("/app/again", "", Some(("/usr/bin/dash", "[sh] -e *")));
    for nothing in ["", "gone", "/loop", "/app", "/../../gone"] {
        check(nothing, "", None);
    }
}

#[test]
fn libraries_are_those_that_the_loader_finds() {
    let config = ImageConfig {
        entrypoint: words("server"),
        ..ImageConfig::default()
    };
    let seed = seed(&config, &mut image());
    let paths: Vec<&[u8]> = seed.libraries.keys().map(|path| &**path).collect();
    assert_eq!(
        paths,
        [
            &b"/opt/libs/libc.so.6"[..],
            b"/usr/lib/own/libz.so.1.2",
            b"/usr/lib64/ld.so"
        ]
    );
    assert!(seed.whole.main.files.allows(b"/opt/libs/libc.so.6", READ));
}

#[test]
fn the_config_names_volumes_ports_and_a_health_check() {
    let config = ImageConfig {
        volumes: words("/var/lib/data / relative"),
        exposed_ports: words("80/tcp 53/udp"),
        user: "www".to_owned(),
        healthcheck: vec!["CMD-SHELL".to_owned(), "server --check".to_owned()],
        ..ImageConfig::default()
    };
    let seed = seed(&config, &mut image());
    let files = &seed.whole.main.files;
    assert!(files.allows(b"/var/lib/data/a/b", READ | WRITE));
    assert!(!files.allows(b"/var/lib/other", READ));
    assert_eq!(seed.exposed_ports.len(), 2);
    assert_eq!(seed.user, "www");
    let (name, command) = seed.whole.put_in.first_key_value().unwrap();
    assert!(name.starts_with("/bin/sh -c text:"), "{name}");
    assert!(command.is_named && command.seen == 0);
    assert_eq!(
        programs(&command.behaviour).first().unwrap().0,
        "/usr/bin/dash"
    );
}

proptest! {
    #[test]
    fn a_hostile_image_does_no_harm(
        entries in proptest::collection::vec(
            ("/[ab]{1,2}(/[ab.]{1,2}){0,2}", "[/ab.#! ]{0,12}", any::<bool>()), 0..12),
        entrypoint in "[/ab.]{0,8}",
        path in "[/ab:.]{0,8}",
    ) {
        let mut image = Image::default();
        for (at, text, is_link) in &entries {
            image = if *is_link { image.link(at, text) } else { image.file(at, text.as_str()) };
        }
        let config = ImageConfig {
            entrypoint: vec![entrypoint],
            path: Some(path.clone()),
            volumes: vec![path],
            ..ImageConfig::default()
        };
        seed(&config, &mut image);
    }
}
