use proptest::prelude::*;

use super::{super::pattern, *};

static LIMITS: Limits = Limits {
    tops: 4,
    weight: 300,
};

/// Of which nothing is cut off here.
static LARGE: Limits = Limits {
    tops: 4,
    weight: 2000,
};

fn tree(paths: &[impl AsRef<str>]) -> PathTree {
    let mut tree = PathTree::new(&LARGE);
    for path in paths {
        tree.learn(path.as_ref().as_bytes(), READ);
    }
    tree
}

fn texts(tree: &PathTree) -> Vec<String> {
    let rules = tree.rules();
    let mut texts: Vec<String> = rules
        .iter()
        .map(|rule| {
            format!(
                "{} {}",
                pattern::rule_text(rule),
                pattern::access_name(rule.access)
            )
        })
        .collect();
    texts.extend(
        tree.collapsed()
            .iter()
            .map(|path| format!("collapsed {}", pattern::text(path))),
    );
    texts.extend(
        tree.cuts()
            .map(|(top, depth)| format!("cut {} {depth}", pattern::text(top))),
    );
    texts.extend(tree.is_incomplete().then(|| "incomplete".to_owned()));
    texts.sort();
    texts
}

fn names(tree: &PathTree) -> Vec<String> {
    tree.rules().iter().map(pattern::rule_text).collect()
}

#[test]
fn paths_become_patterns() {
    let check = |paths: &[&str], expect: &[&str]| assert_eq!(names(&tree(paths)), expect);
    check(&["/etc/passwd", "/etc/passwd"], &["/etc/passwd"]);
    check(
        &[
            "/proc/1/stat",
            "/proc/self/stat",
            "/proc/thread-self/status",
            "/proc/meminfo",
        ],
        &["/proc/*/stat", "/proc/*/status", "/proc/meminfo"],
    );
    check(&["/dev/pts/0", "/dev/pts/1"], &["/dev/pts/*"]);
    check(&["/proc/7/task/8/comm"], &["/proc/*/task/*/comm"]);
    check(&["/proc/self/fd/3"], &["/proc/*/fd/*"]);
    check(&["@00a1f", "@/tmp/x"], &["@/tmp/x", "@*"]);
    check(&["/"], &["/"]);
    check(&["/a//b"], &["/a/b"]);
}

#[test]
fn a_directory_with_many_entries_is_collapsed() {
    let many = |directory: &str, tail: &str| -> Vec<String> {
        (0..=SIBLINGS_MAX)
            .map(|it| {
                let name: String = std::iter::repeat_n('x', it + 1).collect();
                format!("{directory}/{name}{tail}")
            })
            .collect()
    };
    let check = |paths: &[String], expect: &[&str]| assert_eq!(names(&tree(paths)), expect);
    check(&many("/app/data", ""), &["/app/data/*"]);
    check(&many("/app/data", "/log"), &["/app/data/*/log"]);
    check(&many("/tmp", ""), &["/tmp/*"]);
    check(&many("/var/lib/x", ""), &["/var/lib/x/*"]);
    let mut nested: Vec<String> = many("/app/d", "/f");
    nested.extend(many("/app/d/deep", ""));
    check(&nested, &["/app/d/*/*"]);
    // Any name in these would be too much.
    for guarded in ["/etc", "/root", "/proc/1", "/etc/ssh", "/home/me", "/var"] {
        assert_eq!(
            tree(&many(guarded, "")).rules().len(),
            SIBLINGS_MAX + 1,
            "{guarded}"
        );
    }
}

#[test]
fn secrets_are_allowed_by_their_own_name_only() {
    let mut paths: Vec<String> = (b'a'..=b'z')
        .map(|it| format!("/srv/keys/{}", char::from(it)))
        .collect();
    paths.extend((b'a'..=b'z').map(|it| format!("/srv/keys/x{}", char::from(it))));
    let mut learned = tree(&paths);
    let check = |tree: &PathTree, path: &str, expect: bool| {
        assert_eq!(tree.allows(path.as_bytes(), READ), expect, "{path}");
    };
    check(&learned, "/srv/keys/other", true);
    check(&learned, "/srv/keys/id_rsa", false);
    learned.learn(b"/srv/keys/id_rsa", READ);
    check(&learned, "/srv/keys/id_rsa", true);
    check(&learned, "/srv/keys/token", false);
    let learned = tree(&["/proc/1/stat", "/proc/self/mem"]);
    check(&learned, "/proc/9/mem", true);
    let learned = tree(&["/proc/1/stat"]);
    check(&learned, "/proc/9/mem", false);
    check(&learned, "/etc/shadow", false);
}

#[test]
fn what_is_allowed_for_both_is_allowed_for_each() {
    let check = |learned: u8, asked: u8, expect: bool| {
        let mut tree = PathTree::new(&LIMITS);
        tree.learn(b"/tmp/x", learned);
        assert_eq!(tree.allows(b"/tmp/x", asked), expect);
    };
    check(READ, READ, true);
    check(READ, WRITE, false);
    check(WRITE, READ, false);
    check(READ | WRITE, READ, true);
    check(READ | WRITE, WRITE, true);
    check(READ, READ | WRITE, false);
}

#[test]
fn whatever_is_opened_the_tree_stays_small() {
    let mut tree = PathTree::new(&LIMITS);
    for number in 0..20_000u32 {
        // Names that are no ids, in directories of many forms.
        let letters = |number: u32| -> String {
            format!("{number:03}")
                .bytes()
                .map(|digit| char::from(digit + 49))
                .collect()
        };
        let (a, b, c) = (number % 30, number / 30 % 30, number / 900);
        let path = format!("/tmp/{}/{}/{}", letters(a), letters(b), letters(c));
        tree.learn(path.as_bytes(), WRITE);
        tree.learn(
            format!("/etc/{}/{}", letters(a), letters(number)).as_bytes(),
            READ,
        );
        tree.learn(format!("/x{}", letters(number)).as_bytes(), READ);
    }
    assert!(tree.bytes() < 64 << 10, "{}", tree.bytes());
    assert!(tree.is_incomplete());
    assert!(tree.cuts().count() > 0);
}

/// Paths that collapse, are cut off and are patterns.
fn paths() -> impl Strategy<Value = Vec<(String, u8)>> {
    let name = prop_oneof![
        (b'a'..=b'z', b'a'..=b'z').prop_map(|(a, b)| format!("{}{}", char::from(a), char::from(b))),
        (0u32..3).prop_map(|it| it.to_string()),
        Just("token".to_owned()),
        Just("self".to_owned()),
    ];
    let top = proptest::sample::select(vec!["/tmp", "/etc", "/proc", "/app", "/srv", "/usr", "@x"]);
    let path = (top, proptest::collection::vec(name, 0..5))
        .prop_map(|(top, names)| [vec![top.to_owned()], names].concat().join("/"));
    proptest::collection::vec((path, 1u8..=3), 0..400)
}

fn learned(paths: &[(String, u8)]) -> PathTree {
    let mut tree = PathTree::new(&LIMITS);
    for (path, access) in paths {
        tree.learn(path.as_bytes(), *access);
    }
    tree
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_order_makes_no_difference(paths in paths(), seed: u64) {
        let mut other = paths.clone();
        // Any order that is another one.
        other.sort_by_key(|(path, access)| {
            path.bytes().fold(seed ^ u64::from(*access), |sum, byte| {
                (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
            })
        });
        prop_assert_eq!(texts(&learned(&paths)), texts(&learned(&other)));
    }

    #[test]
    fn joining_is_learning_both(one in paths(), other in paths()) {
        let mut joined = learned(&one);
        joined.join(&learned(&other));
        prop_assert_eq!(texts(&joined), texts(&learned(&[one, other].concat())));
    }

    #[test]
    fn what_was_learned_is_known_and_allowed(paths in paths()) {
        let tree = learned(&paths);
        let is_kept = |path: &str| {
            let (top, rest) = split_top(path.as_bytes());
            let guarded = tree.cuts().find(|(name, _)| *name == top);
            let is_dropped = guarded.is_some_and(|(name, depth)| {
                !may_cut(name, depth) && segments(rest).count() >= usize::from(depth)
            });
            let is_cut_secret = is_secret(last_of(path.as_bytes()));
            tree.find(top).is_ok() && !is_dropped && !is_cut_secret
        };
        for (path, access) in &paths {
            prop_assert!(tree.has(path.as_bytes(), *access), "{}", path);
            if is_kept(path) {
                prop_assert!(tree.allows(path.as_bytes(), *access), "{}", path);
            }
        }
    }

    #[test]
    fn its_patterns_make_it_again(paths in paths()) {
        let tree = learned(&paths);
        let mut again = PathTree::new(&LIMITS);
        for (top, depth) in tree.cuts() {
            again.cut(top, depth);
        }
        if tree.is_incomplete() {
            again.set_incomplete();
        }
        for path in tree.collapsed() {
            again.collapse(&path);
        }
        for rule in tree.rules() {
            again.add(&rule);
        }
        prop_assert_eq!(texts(&tree), texts(&again));
    }
}
