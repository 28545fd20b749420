//! Rules of each program in their real shape, with who made them.

use super::{Place, of};

/// Reads `tests/data/owner`: `*table`, then rules as iptables-save prints them, or `table … {` and `chain … {` with
/// rules as nft prints them; behind ` => ` stands the owner, `-` where it must not be told. `:CHAIN` is a chain's end.
fn check(name: &str, text: &str) -> usize {
    let (mut table, mut nft_chain) = ("", "");
    let mut checked = 0;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        let (rule, expected) = match line.split_once(" => ") {
            Some((rule, expected)) => (rule.trim(), expected),
            None => {
                let words: Vec<&str> = line.split(' ').collect();
                match words[..] {
                    ["table", _, name, "{"] => table = name,
                    ["chain", name, "{"] => nft_chain = name,
                    _ => table = line.strip_prefix('*').unwrap_or(table),
                }
                continue;
            }
        };
        let (chain, text) = match (rule.strip_prefix(':'), rule.strip_prefix("-A ")) {
            (Some(chain), _) => (chain, None),
            (_, Some(rest)) => (rest.split(' ').next().unwrap_or_default(), Some(rule)),
            _ => (nft_chain, Some(rule)),
        };
        let owner = of(Place { table, chain, text });
        assert_eq!(owner.as_deref().unwrap_or("-"), expected, "{name}:{number}: {line}");
        checked += 1;
    }
    checked
}

#[test]
fn rules_in_their_real_shape() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/owner");
    let mut systems = 0;
    for file in std::fs::read_dir(directory).expect("the fixtures are there") {
        let path = file.expect("the fixtures are there").path();
        let text = std::fs::read_to_string(&path).expect("the fixtures are there");
        assert!(check(&path.display().to_string(), &text) > 0, "{}", path.display());
        systems += 1;
    }
    assert!(systems >= 12, "{systems}");
}

#[test]
fn what_a_user_quotes_is_no_word() {
    let rule = r#"-A INPUT -m comment --comment "see -j DOCKER and \"comment cali:x\"" -j ACCEPT"#;
    assert_eq!(of(Place { table: "filter", chain: "INPUT", text: Some(rule) }), None);
}

proptest::proptest! {
    #[test]
    fn any_text(table: String, chain: String, text: String) {
        of(Place { table: &table, chain: &chain, text: Some(&text) });
    }
}
