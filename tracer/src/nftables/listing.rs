//! What `nft -a list ruleset` prints, taken apart into chains and rules.

/// A table as it was printed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Table<'a> {
    pub(super) family: &'a str,
    pub(super) name: &'a str,
    /// Older versions print none.
    pub(super) handle: Option<u64>,
    pub(super) chains: Vec<Chain<'a>>,
}

/// A chain as it was printed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chain<'a> {
    pub(super) name: &'a str,
    pub(super) handle: Option<u64>,
    pub(super) rules: Vec<Rule<'a>>,
}

/// A rule as it was printed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rule<'a> {
    pub(super) handle: u64,
    /// Without the handle. Of several lines when it holds a chain, or a string with a line feed.
    pub(super) text: &'a str,
    /// The rules of the chain that it holds, which are printed without handles.
    pub(super) bound: Vec<&'a str>,
}

/// All tables. `Err` is a line that makes no sense where it stands.
pub(super) fn parse(listing: &str) -> Result<Vec<Table<'_>>, &str> {
    let mut lines = Lines { text: listing, at: 0 };
    let mut tables = Vec::new();
    while let Some(line) = lines.next() {
        // Newer versions print warnings about tables of iptables-nft here.
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (head, handle) = block(line).ok_or(line)?;
        let (family, name) = head.strip_prefix("table ").and_then(|head| head.split_once(' ')).ok_or(line)?;
        tables.push(Table { family, name, handle, chains: chains(&mut lines)? });
    }
    Ok(tables)
}

/// The chains up to the end of the table.
fn chains<'a>(lines: &mut Lines<'a>) -> Result<Vec<Chain<'a>>, &'a str> {
    let mut chains = Vec::new();
    while let Some(line) = lines.next() {
        if line == "}" {
            return Ok(chains);
        }
        // Others are a flag, a comment, or the empty line between two blocks.
        if let Some((head, handle)) = block(line) {
            match head.strip_prefix("\tchain ") {
                Some(name) => chains.push(Chain { name, handle, rules: rules(lines)? }),
                None => while lines.next().ok_or(line)? != "\t}" {},
            }
        }
    }
    Err("the end")
}

/// The rules up to the end of the chain.
fn rules<'a>(lines: &mut Lines<'a>) -> Result<Vec<Rule<'a>>, &'a str> {
    let mut rules = Vec::new();
    loop {
        let start = lines.at;
        let line = lines.next().ok_or("the end")?;
        if line == "\t}" {
            return Ok(rules);
        }
        let about_chain =
            ["\t\ttype ", "\t\tcomment \"", "\t\tflags "].iter().any(|word| line.starts_with(word));
        if about_chain && split_handle(line).is_none() {
            continue;
        }
        // `jump {` and the rules of that chain, or a long set of some versions, go on in the next lines.
        let (holds_chain, mut bound, mut last) = (line.ends_with(" {"), Vec::new(), line);
        let (end, handle) = loop {
            match (last.strip_prefix("\t\t\t").filter(|_| holds_chain), split_handle(last)) {
                (Some(rule), _) if rule.ends_with(" {") => return Err(last),
                (Some(rule), _) => bound.push(rule),
                (None, Some((rest, handle))) => break (lines.at - 1 - last.len() + rest.len(), handle),
                (None, None) => {}
            }
            last = lines.next().filter(|line| *line != "\t}").ok_or(line)?;
        };
        let text = lines.text.get(start..end).ok_or(line)?.strip_prefix("\t\t").ok_or(line)?;
        rules.push(Rule { handle, text, bound });
    }
}

/// Name and handle of a line that opens a block: `table ip filter { # handle 3`.
fn block(line: &str) -> Option<(&str, Option<u64>)> {
    match line.rsplit_once(" { # handle ") {
        // The program that owns a table follows.
        Some((head, after)) => Some((head, Some(after.split(' ').next()?.parse().ok()?))),
        None => Some((line.strip_suffix(" {")?, None)),
    }
}

/// Takes ` # handle 7` off the end.
fn split_handle(line: &str) -> Option<(&str, u64)> {
    let (rest, handle) = line.rsplit_once(" # handle ")?;
    Some((rest, handle.parse().ok()?))
}

/// Lines, of which none ends within a quoted string. nft knows no escapes in them.
struct Lines<'a> {
    text: &'a str,
    /// Where the next begins.
    at: usize,
}

impl<'a> Iterator for Lines<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let rest = self.text.get(self.at..).filter(|rest| !rest.is_empty())?;
        let mut quoted = false;
        let end = rest.bytes().position(|byte| {
            quoted ^= byte == b'"';
            byte == b'\n' && !quoted
        })?;
        self.at += end + 1;
        Some(&rest[..end])
    }
}
