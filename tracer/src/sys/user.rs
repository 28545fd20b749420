//! Users of this host.

use std::fs;
use std::io;
use std::path::Path;

/// The number of a user, from `/etc/passwd`; `None` where it has no such name.
pub fn number(name: &str) -> io::Result<Option<u32>> {
    number_in(Path::new("/etc/passwd"), name)
}

fn number_in(file: &Path, name: &str) -> io::Result<Option<u32>> {
    let text = fs::read(file)?;
    let number = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b':');
        let number = (fields.next()? == name.as_bytes()).then(|| fields.nth(1))??;
        std::str::from_utf8(number).ok()?.parse().ok()
    };
    Ok(text.split(|byte| *byte == b'\n').find_map(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up() {
        assert_eq!(number("root").unwrap(), Some(0));
        assert_eq!(number("no:body").unwrap(), None);
        assert_eq!(number("").unwrap(), None);
    }
}
