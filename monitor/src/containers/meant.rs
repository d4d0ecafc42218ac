//! Which containers a person means.

/// Those of `all` that `wanted` means: the one with this whole id, else those with this name or with
/// an id that begins so. `id_and_name` tells both of one.
pub fn meant<'a, T: Copy>(
    all: &[T],
    wanted: &str,
    id_and_name: impl Fn(T) -> Option<(&'a str, &'a str)>,
) -> Vec<T> {
    let matching = |is_it: &dyn Fn(&str, &str) -> bool| -> Vec<T> {
        let found = all.iter().copied();
        found
            .filter(|one| id_and_name(*one).is_some_and(|(id, name)| is_it(id, name)))
            .collect()
    };
    let whole = matching(&|id, _| id == wanted);
    if whole.is_empty() {
        matching(&|id, name| name == wanted || id.starts_with(wanted))
    } else {
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_id_comes_before_names_and_beginnings() {
        let all = [("abc", "web"), ("abcd", "db"), ("web", "abc"), ("f", "db")];
        let check = |wanted: &str, expect: &[(&str, &str)]| {
            assert_eq!(meant(&all, wanted, Some), expect, "{wanted}");
        };
        check("abc", &[("abc", "web")]);
        check("web", &[("web", "abc")]);
        check("ab", &[("abc", "web"), ("abcd", "db")]);
        check("db", &[("abcd", "db"), ("f", "db")]);
        check("x", &[]);
    }
}
