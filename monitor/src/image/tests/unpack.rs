use super::{
    super::codec::{decode, encode},
    *,
};

#[track_caller]
fn check(tar: Tar, expect: &[&str]) {
    let tar = tar.end();
    // However the stream is cut and compressed, the layer is the same.
    for (blob, chunk) in [
        (tar.clone(), 1),
        (tar.clone(), 1 << 20),
        (gzip(&tar), 7),
        (zstd(&tar), 7),
    ] {
        let layer = read(&blob, &tar, chunk).unwrap();
        let lines: Vec<String> = listing(&layer).lines().map(str::to_owned).collect();
        assert_eq!(lines, expect);
        assert_eq!(layer.diff_id(), digest_of(&tar));
    }
}

#[test]
fn a_layer_holds_what_containerd_would_unpack() {
    let tar = Tar::default;
    check(tar(), &[]);
    check(
        tar()
            .directory("./")
            .directory("./bin/")
            .file("./bin/sh", "a")
            .file("/etc/x", ""),
        &[
            "bin directory",
            "bin/sh file 1 a",
            "etc directory implied",
            "etc/x file 0 nothing",
        ],
    );
    // A directory, what is in it, then its sibling, though `-` sorts before `/`.
    check(
        tar().file("a-b", "x").file("a/b", "y").file("ab", "z"),
        &[
            "a directory implied",
            "a/b file 1 y",
            "a-b file 1 x",
            "ab file 1 z",
        ],
    );
    // Hard links: to a file of this layer, to a link, to a symlink itself, to another layer.
    check(
        tar()
            .file("a", "x")
            .hardlink("b", "a")
            .hardlink("c", "./b")
            .symlink("s", "a")
            .hardlink("t", "/s")
            .hardlink("u", "lower/x"),
        &[
            "a file 1 x",
            "b file 1 x",
            "c file 1 x",
            "s -> a",
            "t -> a",
            "u link lower/x",
        ],
    );
    // A link holds on to what its target was.
    check(
        tar().file("a", "x").hardlink("b", "a").file("a", "y"),
        &["a file 1 y", "b file 1 x"],
    );
    check(
        tar().hardlink("b", "a").file("a", "x"),
        &["a file 1 x", "b link a"],
    );
    // Whiteouts and opaque directories, in either order, and what aufs left behind.
    check(
        tar()
            .file("d/.wh.gone", "")
            .file("o/.wh..wh..opq", "")
            .file("o/x", "a"),
        &[
            "d directory implied",
            "d/gone whiteout",
            "o directory opaque implied",
            "o/x file 1 a",
        ],
    );
    check(tar().file("a", "x").file(".wh.a", ""), &["a file 1 x"]);
    check(tar().file(".wh.a", "").file("a", "x"), &["a file 1 x"]);
    check(
        tar().file(".wh.a", "").directory("a"),
        &["a directory opaque"],
    );
    check(
        tar().file("a/x", "x").file(".wh.a", ""),
        &["a directory opaque implied", "a/x file 1 x"],
    );
    check(
        tar()
            .directory(".wh..wh.plnk")
            .file(".wh..wh.plnk/1.2", "")
            .file("d/.wh..wh.x", ""),
        &[],
    );
    // The last of the same path wins; directories merge.
    check(tar().file("a", "x").file("a", "y"), &["a file 1 y"]);
    check(
        tar().directory("a").file("a/b", "x").file("a", "y"),
        &["a file 1 y"],
    );
    check(
        tar()
            .directory("a")
            .file("a/b", "x")
            .file("a", "y")
            .directory("a")
            .file("a/c", "z"),
        &["a directory", "a/c file 1 z"],
    );
    check(
        tar().file("a/b", "x").directory("a"),
        &["a directory", "a/b file 1 x"],
    );
    // The way to an entry leads through the symlinks of its layer, never out of the root.
    check(
        tar().symlink("lib", "usr/lib").file("lib/x", "x"),
        &[
            "lib -> usr/lib",
            "usr directory implied",
            "usr/lib directory implied",
            "usr/lib/x file 1 x",
        ],
    );
    check(
        tar()
            .symlink("d/up", "../../../r")
            .file("d/up/x", "x")
            .symlink("abs", "/r")
            .file("abs/y", "y"),
        &[
            "abs -> /r",
            "d directory implied",
            "d/up -> ../../../r",
            "r directory implied",
            "r/x file 1 x",
            "r/y file 1 y",
        ],
    );
    check(
        tar()
            .symlink("s", "a")
            .file("s/x", "x")
            .file("s", "y")
            .directory("s")
            .file("s/x", "z"),
        &[
            "a directory implied",
            "a/x file 1 x",
            "s directory",
            "s/x file 1 z",
        ],
    );
    check(
        tar()
            .entry(b'3', "c", "", b"")
            .entry(b'4', "b", "", b"")
            .entry(b'6', "p", "", b""),
        &["b block 3:4", "c char 3:4", "p fifo"],
    );
}

#[test]
fn names_and_numbers_are_read_as_go_reads_them() {
    let tar = Tar::default;
    check(
        tar().raw(b'0', b"\xff\xfe", b"", 0, b""),
        &["\\xff\\xfe file 0 nothing"],
    );
    check(
        tar()
            .raw(0, b"old/", b"", 0, b"")
            .raw(0, b"file", b"", 1, b"x"),
        &["file file 1 x", "old directory"],
    );
    let long = "n".repeat(300);
    let expect = format!("{long} file 1 x");
    check(
        tar()
            .entry(b'L', "././@LongLink", "", format!("{long}\0").as_bytes())
            .file("short", "x"),
        &[&expect],
    );
    check(
        tar().pax("path", long.as_bytes()).file("short", "x"),
        &[&expect],
    );
    // A GNU name goes before a pax one; an empty pax value takes itself back.
    check(
        tar()
            .pax("path", b"pax")
            .entry(b'L', "", "", b"gnu")
            .file("short", "x"),
        &["gnu file 1 x"],
    );
    check(
        tar().pax("path", b"").file("short", "x"),
        &["short file 1 x"],
    );
    check(
        tar().pax("path", b"new\nline").file("short", "x"),
        &["new\\nline file 1 x"],
    );
    check(
        tar().entry(b'K', "", "", b"gnu").symlink("s", "short"),
        &["s -> gnu"],
    );
    check(
        tar().pax("linkpath", b"pax").symlink("s", "short"),
        &["s -> pax"],
    );
    check(
        tar()
            .entry(b'g', "", "", b"16 path=ignored\n")
            .file("a", "x"),
        &["a file 1 x"],
    );
    // The pax size is the size.
    check(
        tar().pax("size", b"1").raw(b'0', b"a", b"", 0, b"x"),
        &["a file 1 x"],
    );
    // Sparse files: zeros where the archive holds nothing. All three pax forms and GNU's own.
    let sparse = format!(
        "{}a{}b{}",
        "\0".repeat(3),
        "\0".repeat(600),
        "\0".repeat(70)
    );
    let expect = format!(
        "big file {} {}",
        sparse.len(),
        digest_of(sparse.as_bytes()).0
    );
    let size = sparse.len().to_string();
    check(
        tar()
            .pax("GNU.sparse.size", size.as_bytes())
            .pax_more("GNU.sparse.numblocks", b"2")
            .pax_more("GNU.sparse.offset", b"3")
            .pax_more("GNU.sparse.numbytes", b"1")
            .pax_more("GNU.sparse.offset", b"604")
            .pax_more("GNU.sparse.numbytes", b"1")
            .file("big", "ab")
            .file("next", "x"),
        &[&expect, "next file 1 x"],
    );
    check(
        tar()
            .pax("GNU.sparse.name", b"big")
            .pax_more("GNU.sparse.size", size.as_bytes())
            .pax_more("GNU.sparse.numblocks", b"2")
            .pax_more("GNU.sparse.map", b"3,1,604,1")
            .file("GNUSparseFile.0/big", "ab")
            .file("next", "x"),
        &[&expect, "next file 1 x"],
    );
    let mut body = b"2\n3\n1\n604\n1\n".to_vec();
    body.resize(512, 0);
    body.extend_from_slice(b"ab");
    check(
        tar()
            .pax("GNU.sparse.major", b"1")
            .pax_more("GNU.sparse.minor", b"0")
            .pax_more("GNU.sparse.name", b"big")
            .pax_more("GNU.sparse.realsize", size.as_bytes())
            .entry(b'0', "GNUSparseFile.0/big", "", &body)
            .file("next", "x"),
        &[&expect, "next file 1 x"],
    );
    check(
        tar()
            .gnu_sparse("big", sparse.len(), &[(3, 1), (604, 1)], b"ab")
            .file("next", "x"),
        &[&expect, "next file 1 x"],
    );
    // More parts than a header has room for.
    let parts: Vec<(usize, usize)> = (0..30).map(|index| (index * 2, 1)).collect();
    let many = "x\0".repeat(30);
    let expect = format!("many file 60 {}", digest_of(many.as_bytes()).0);
    check(
        tar()
            .gnu_sparse("many", 60, &parts, &[b'x'; 30])
            .file("next", "x"),
        &[&expect, "next file 1 x"],
    );
    // A version that Go does not know is a file like any other.
    check(
        tar()
            .pax("GNU.sparse.major", b"2")
            .pax_more("GNU.sparse.name", b"big")
            .file("a", "x"),
        &["a file 1 x"],
    );
    // What has no body has none, whatever its size says.
    check(
        tar().raw(b'2', b"s", b"t", 512, b"").file("a", "x"),
        &["a file 1 x", "s -> t"],
    );
    check(
        tar().raw(b'5', b"d", b"", 512, b"").file("a", "x"),
        &["a file 1 x", "d directory"],
    );

    let layer = layer(
        tar()
            .file("a", "x")
            .pax("uid", b"3000000000")
            .file("b", "x"),
    )
    .unwrap();
    let owner = |path: &[u8]| match layer.get(path) {
        Some(Entry::Node { metadata, .. }) => (metadata.mode, metadata.uid, metadata.gid),
        other => panic!("{other:?}"),
    };
    assert_eq!(owner(b"a"), (0o644, 7, 8));
    assert_eq!(owner(b"b"), (0o644, 3_000_000_000, 8));
}

#[test]
fn file_capabilities_are_kept_and_go_with_hard_links() {
    let value = hex::decode("0100000200200000000000000000000000000000").unwrap();
    let layer = layer(
        Tar::default()
            .pax("SCHILY.xattr.security.capability", &value)
            .file("ping", "x")
            .hardlink("ping6", "ping")
            .pax("SCHILY.xattr.user.any", b"other")
            .file("plain", "x"),
    )
    .unwrap();
    let kept = decode(&encode(&layer), &layer.diff_id()).unwrap();
    assert_eq!(kept, layer);
    for layer in [layer, kept] {
        let capability = |path: &[u8]| match layer.get(path) {
            Some(Entry::Node { metadata, .. }) => metadata.capability,
            other => panic!("{other:?}"),
        };
        assert!(capability(b"ping").is_some_and(|seen| seen.permitted == 1 << 13));
        assert_eq!(capability(b"ping6"), capability(b"ping"));
        assert_eq!(capability(b"plain"), None);
    }
}

#[test]
fn an_archive_may_end_as_go_lets_it_end() {
    let whole = Tar::default().file("a", "x").0;
    for tar in [
        // No block of zeros, one, and things after two.
        whole.clone(),
        [whole.as_slice(), &[0; 512]].concat(),
        [whole.as_slice(), &[0; 1024], b"anything"].concat(),
        // Nothing fills the last block.
        whole[..513].to_vec(),
    ] {
        assert_eq!(listing(&read(&tar, &tar, 100).unwrap()), "a file 1 x\n");
    }
    assert_eq!(listing(&read(b"", b"", 1).unwrap()), "");
    let (head, tail) = whole.split_at(300);
    let members = [gzip(head), gzip(tail)].concat();
    assert_eq!(listing(&read(&members, &whole, 5).unwrap()), "a file 1 x\n");
}

#[test]
fn what_a_layer_must_not_hold_is_refused_by_name() {
    #[track_caller]
    fn check(tar: Tar, expect: &str) {
        assert_eq!(
            layer(tar)
                .map(|layer| listing(&layer))
                .unwrap_err()
                .to_string(),
            expect
        );
    }
    let tar = Tar::default;
    check(
        tar().file("../x", ""),
        r#"path "../x" has a `..` component"#,
    );
    check(
        tar().file("a/../b", ""),
        r#"path "a/../b" has a `..` component"#,
    );
    check(
        tar().hardlink("x", "../../etc/shadow"),
        r#"path "../../etc/shadow" has a `..` component"#,
    );
    check(tar().pax("path", b"a\0b").file("x", ""), "path with a NUL");
    check(
        tar().pax("path", &[b'x'; 4097]).file("x", ""),
        "path of 4097 bytes; at most 4096 are read",
    );
    check(
        tar().pax("linkpath", &[b'x'; 4097]).symlink("x", ""),
        "path of 4097 bytes; at most 4096 are read",
    );
    let target = "t".repeat(4000);
    check(
        tar()
            .pax("linkpath", target.as_bytes())
            .symlink("s", "")
            .file(&format!("s/{}", "n".repeat(96)), ""),
        "path of 4097 bytes; at most 4096 are read",
    );
    check(
        tar().file("d/.wh.", ""),
        r#"whiteout "d/.wh." names no file"#,
    );
    check(
        tar().file("d/.wh..", ""),
        r#"whiteout "d/.wh.." names no file"#,
    );
    check(
        tar().file("d/.wh...", ""),
        r#"whiteout "d/.wh..." names no file"#,
    );
    check(
        tar().file("a", "").file("a/b", ""),
        r#"path "a/b" lies in something that is not a directory"#,
    );
    // The entry takes the place of the symlink that led to it.
    check(
        tar().symlink("s", ".").file("s/s", "").file("s/x", ""),
        r#"path "s/x" lies in something that is not a directory"#,
    );
    check(
        tar().directory("d").hardlink("l", "d"),
        r#"hard link "l" to a directory"#,
    );
    check(tar().hardlink("l", "/"), r#"hard link "l" to a directory"#);
    check(
        tar().symlink("a", "b").symlink("b", "a").file("a/x", ""),
        r#"path "a/x" leads through more than 40 symlinks"#,
    );
    let map = "malformed tar header: map of a sparse file";
    // What the map tells must be there, in order and within the file.
    for (numbers, body) in [
        ("0,1", "ab"),
        ("0,2", "a"),
        ("4,1,0,1", "ab"),
        ("0,1,0,1", "ab"),
        ("9,2", "ab"),
        ("18446744073709551615,2", "ab"),
        ("0,1,3", "a"),
    ] {
        let count = numbers.matches(',').count().div_ceil(2);
        check(
            tar()
                .pax("GNU.sparse.map", numbers.as_bytes())
                .pax_more("GNU.sparse.numblocks", count.to_string().as_bytes())
                .pax_more("GNU.sparse.size", b"10")
                .file("x", body),
            map,
        );
    }
    check(
        tar()
            .pax("GNU.sparse.major", b"1")
            .pax_more("GNU.sparse.minor", b"0")
            .file("x", &format!("{}\n", 1 << 30)),
        map,
    );
    check(
        tar()
            .pax("GNU.sparse.major", b"1")
            .pax_more("GNU.sparse.minor", b"0")
            .file("x", "99\n"),
        "truncated layer",
    );
    // Holes take no bytes of the archive, yet time to hash.
    check(
        tar()
            .pax("GNU.sparse.map", b"0,0")
            .pax_more("GNU.sparse.numblocks", b"1")
            .pax_more("GNU.sparse.size", b"9000000000000000000")
            .file("x", ""),
        "uncompressed layer, or the holes of its sparse files, of more than 68719476736 bytes",
    );
    check(tar().entry(b'S', "sparse", "", b""), map);
    check(
        tar()
            .pax("SCHILY.xattr.security.capability", b"any")
            .file("x", ""),
        "malformed tar header: file capability",
    );
    check(
        tar().entry(b'7', "x", "", b""),
        "tar entry of unknown type 0x37",
    );
    check(
        tar().raw(b'L', b"", b"", (1 << 20) + 1, b""),
        "tar name extension of 1048577 bytes",
    );
    check(
        tar().entry(b'x', "", "", b"99 path=x\n"),
        "malformed tar header: pax record",
    );
    check(
        tar().entry(b'x', "", "", b"path=x\n"),
        "malformed tar header: pax record",
    );
    check(
        tar().pax("uid", b"4294967296").file("x", ""),
        "malformed tar header: owner",
    );
    check(
        tar().pax("size", b"-1").file("x", ""),
        "malformed tar header: pax record",
    );
    check(tar().raw(b'0', b"x", b"", 4096, b""), "truncated layer");
    check(Tar(vec![b'x'; 100]), "malformed tar header: checksum");
    check(
        Tar([vec![0; 512], Tar::default().file("x", "").0].concat()),
        "malformed tar header: end",
    );
    // Fewer headers than entries: paths imply them.
    let mut deep = tar();
    for index in 0..200 {
        deep = deep
            .pax("path", format!("{index}{}", "/d".repeat(1900)).as_bytes())
            .file("x", "");
    }
    check(
        deep,
        "paths and link targets of more than 268435456 bytes together",
    );
}

#[test]
fn bytes_that_are_not_those_of_the_digests_are_refused() {
    let whole = Tar::default().file("a", "x").end();
    let other = Tar::default().file("a", "y").end();
    let zipped = gzip(&whole);
    #[track_caller]
    fn check(blob: &[u8], tar: &[u8], expect: &str) {
        let seen = read(blob, tar, 100)
            .map(|layer| listing(&layer))
            .unwrap_err()
            .to_string();
        assert!(seen.starts_with(expect), "{seen}");
    }
    check(
        &other,
        &whole,
        "uncompressed layer is not the one that the config names: bytes have digest",
    );
    check(
        &gzip(&other),
        &whole,
        "uncompressed layer is not the one that the config names",
    );
    // Whole as bytes, yet not whole as a layer.
    check(&zipped[..zipped.len() - 9], &whole, "truncated layer");
    check(&whole[..700], &whole, "uncompressed layer is not the one");
    check(&whole[..300], &whole, "truncated layer");
    check(
        &[zipped.as_slice(), b"garbage, not a gzip header"].concat(),
        &whole,
        "cannot decompress: ",
    );
    let mut corrupt = zipped.clone();
    corrupt[zipped.len() - 8] ^= 1;
    check(&corrupt, &whole, "cannot decompress: ");
    check(&[0x28, 0xb5, 0x2f, 0xfd, 0], &whole, "cannot decompress: ");
    let squeezed = zstd(&whole);
    for end in [6, 30, squeezed.len() - 1] {
        check(&squeezed[..end], &whole, "cannot decompress: ");
    }
    check(
        &[squeezed.as_slice(), b"garbage"].concat(),
        &whole,
        "cannot decompress: ",
    );
    // A window of 4 GiB is memory that a few bytes ask for.
    check(
        &[0x28, 0xb5, 0x2f, 0xfd, 0, 22 << 3, 1, 0, 0],
        &whole,
        "cannot decompress: Specified window_size is too big",
    );

    // Where the blob is another one, that is the fault, whatever else it leads to.
    for blob in [
        &other,
        &corrupt,
        &zipped[..20].to_vec(),
        &whole[..300].to_vec(),
    ] {
        let reader = BlobReader::new(runtime().handle().clone(), in_chunks(Ok(blob.clone()), 100));
        let error = read_layer(reader, &digest_of(&zipped), &digest_of(&whole)).unwrap_err();
        assert!(
            matches!(error, LayerError::BlobDigest(mismatch) if mismatch.seen == digest_of(blob)),
            "{error}"
        );
    }
    // A stream that breaks off says nothing of the bytes.
    let broken = BlobError::Unavailable("gone".to_owned());
    let stream = tokio_stream::iter([
        Ok(Bytes::copy_from_slice(&zipped[..20])),
        Err(broken.clone()),
    ]);
    let reader = BlobReader::new(runtime().handle().clone(), Box::pin(stream));
    let error = read_layer(reader, &digest_of(&zipped), &digest_of(&whole)).unwrap_err();
    assert!(matches!(error, LayerError::Blob(seen) if seen == broken));
    let stream = tokio_stream::iter([
        Ok(Bytes::copy_from_slice(&squeezed[..20])),
        Err(broken.clone()),
    ]);
    let reader = BlobReader::new(runtime().handle().clone(), Box::pin(stream));
    let error = read_layer(reader, &digest_of(&squeezed), &digest_of(&whole)).unwrap_err();
    assert!(matches!(error, LayerError::Blob(seen) if seen == broken));
}
