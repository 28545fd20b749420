//! Kernels out of Debian packages: which one, fetched, unpacked.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::apt::Suite;
use crate::places;

/// A kernel, unpacked.
pub(crate) struct Kernel {
    /// What `uname -r` says in it.
    pub(crate) release: String,
    /// The image to boot.
    pub(crate) image: PathBuf,
    /// `lib/modules/RELEASE`, or where the package has it.
    pub(crate) modules: PathBuf,
}

/// The newest kernel of a suite that matches a pattern such as `6.1.*-cloud-amd64`.
///
/// The choice is remembered, so that runs compare and need no network; `refresh` chooses again.
pub(crate) fn kernel(suite: &str, pattern: &str, refresh: bool) -> Result<Kernel> {
    let folder = places::cache()?.join("kernels");
    fs::create_dir_all(&folder)?;
    let chosen = folder.join(format!("{suite}_{}.chosen", pattern.replace('*', "_")));
    if !refresh
        && let Ok(release) = fs::read_to_string(&chosen)
        && let Ok(kernel) = unpacked(&folder, &release)
    {
        return Ok(kernel);
    }
    let archive = Suite::open(suite)?;
    let (images, binaries) = (archive.names("linux-image-")?, archive.names("linux-binary-")?);
    let modules = archive.names("linux-modules-")?;
    let mut releases: Vec<&str> = images
        .iter()
        .filter_map(|name| name.strip_prefix("linux-image-"))
        .chain(binaries.iter().filter_map(|name| name.strip_prefix("linux-binary-")))
        .filter(|release| matches(pattern, release))
        .collect();
    releases.sort_by(|a, b| compare_releases(b, a));
    releases.dedup();

    let mut refused = Vec::new();
    for release in releases {
        // Up to 6.18 one package holds everything; later that one is empty and three others have it.
        let packages: Vec<String> = if binaries.contains(&format!("linux-binary-{release}")) {
            ["binary", "modules", "base"].map(|part| format!("linux-{part}-{release}")).into()
        } else {
            vec![format!("linux-image-{release}")]
        };
        let missing =
            packages.iter().any(|name| name.starts_with("linux-modules-") && !modules.contains(name));
        if missing {
            refused.push(format!("{release}: its modules are gone from the archive"));
            continue;
        }
        if unpacked(&folder, release).is_err() {
            eprintln!("kernels: fetching {release} from {suite}");
            if let Err(error) = archive.unpack(&packages, &folder.join(release)) {
                refused.push(format!("{release}: {error:#}"));
                continue;
            }
        }
        let kernel = unpacked(&folder, release)?;
        fs::write(&chosen, release)?;
        return Ok(kernel);
    }
    bail!("{suite} has no usable kernel that matches {pattern}\n{}", refused.join("\n"))
}

fn unpacked(folder: &Path, release: &str) -> Result<Kernel> {
    let tree = folder.join(release);
    let modules = ["lib/modules", "usr/lib/modules"]
        .map(|place| tree.join(place).join(release))
        .into_iter()
        .find(|place| place.join("kernel").is_dir())
        .with_context(|| format!("{} has no modules", tree.display()))?;
    let image = [tree.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")]
        .into_iter()
        .find(|file| file.is_file())
        .with_context(|| format!("{} has no kernel image", tree.display()))?;
    Ok(Kernel { release: release.to_owned(), image, modules })
}

/// Whether a name matches a pattern in which `*` stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    true
}

/// Compares the numbers in two kernel releases, left to right.
fn compare_releases(a: &str, b: &str) -> Ordering {
    let numbers = |text: &str| -> Vec<u64> {
        // Not the flavour: `amd64` is no number of the version.
        let mut hyphens = text.match_indices('-').map(|(at, _)| at);
        let end = hyphens.find(|at| text[at + 1..].starts_with(|c: char| c.is_ascii_alphabetic()));
        text[..end.unwrap_or(text.len())]
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|digits| digits.parse().ok())
            .collect()
    };
    numbers(a).cmp(&numbers(b)).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_from_end_to_end() {
        assert!(matches("6.1.*-cloud-amd64", "6.1.0-49-cloud-amd64"));
        assert!(!matches("6.1.*-cloud-amd64", "6.12.90+deb13-cloud-amd64"));
        assert!(!matches("6.1.*-cloud-amd64", "6.1.0-49-cloud-amd64-dbg"));
        assert!(matches("7.*deb13*", "7.3.4+deb13-cloud-amd64"));
        assert!(matches("6.1", "6.1") && !matches("6.1", "6.12"));
    }

    #[test]
    fn releases_compare_by_number() {
        let mut releases = ["6.12.90+deb13-amd64", "7.3.4-amd64", "6.12.90+deb13.1-amd64", "6.12.117-amd64"];
        releases.sort_by(|a, b| compare_releases(b, a));
        assert_eq!(
            releases,
            ["7.3.4-amd64", "6.12.117-amd64", "6.12.90+deb13.1-amd64", "6.12.90+deb13-amd64"]
        );
    }
}
