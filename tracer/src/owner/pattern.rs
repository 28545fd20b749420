//! Patterns with stars.

/// What the stars of a pattern stand for in a text; `None` when it does not fit. Each star takes as little as it can,
/// one at the end the rest. `{a|b}` stands for `a` or `b`.
pub(super) fn captures<'t>(pattern: &str, text: &'t str) -> Option<Vec<&'t str>> {
    match pattern.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?))) {
        Some((before, (choices, after))) => {
            choices.split('|').find_map(|choice| captures(&[before, choice, after].concat(), text))
        }
        None => stars(pattern, text),
    }
}

fn stars<'t>(pattern: &str, text: &'t str) -> Option<Vec<&'t str>> {
    let mut parts = pattern.split('*');
    let mut rest = text.strip_prefix(parts.next()?)?;
    let mut found = Vec::new();
    let mut parts = parts.peekable();
    while let Some(part) = parts.next() {
        let at = match parts.peek() {
            Some(_) => rest.find(part)?,
            None if part.is_empty() => rest.len(),
            None => rest.len().checked_sub(part.len()).filter(|_| rest.ends_with(part))?,
        };
        let (taken, after) = rest.split_at(at);
        found.push(taken);
        rest = &after[part.len()..];
    }
    rest.is_empty().then_some(found)
}

/// A template with `$1`, `$2`, … replaced by what the stars took.
pub(super) fn fill(template: &str, found: &[&str]) -> String {
    let with = |text: String, (number, part): (usize, &&str)| text.replace(&format!("${number}"), part);
    (1..).zip(found).fold(template.to_owned(), with)
}

#[cfg(test)]
mod tests {
    use super::{captures, fill};

    #[test]
    fn stars() {
        assert_eq!(captures("KUBE-SVC", "KUBE-SVC"), Some(vec![]));
        assert_eq!(captures("KUBE-SVC", "KUBE-SVC-"), None);
        assert_eq!(captures("KUBE-*", "KUBE-SVC-X"), Some(vec!["SVC-X"]));
        assert_eq!(captures("IN_*_allow", "IN_my_zone_allow"), Some(vec!["my_zone"]));
        assert_eq!(captures("*/*", "a/b/c"), Some(vec!["a", "b/c"]));
        assert_eq!(captures("* -> *", "a/b -> 10.0.0.1:80"), Some(vec!["a/b", "10.0.0.1:80"]));
        assert_eq!(captures("IN_*_allow", "IN_allow"), None);
        assert_eq!(captures("{IN|PRE}_*_{log|deny}", "PRE_public_deny"), Some(vec!["public"]));
        assert_eq!(captures("{IN|PRE}_*_{log|deny}", "POST_public_deny"), None);
    }

    #[test]
    fn templates() {
        assert_eq!(
            fill("service $1, endpoint $2", &["a/b", "10.0.0.1:80"]),
            "service a/b, endpoint 10.0.0.1:80"
        );
    }
}
