//! Notices of third parties: whose work is in the programs, under which licence, with the licences' texts.
//!
//! Taken from `cargo metadata` and from the crates' own folders, so it is never out of date, and takes a
//! second. What is no crate is in packaging/third-party.txt.
//!
//! Owns: the list of licences that may be linked. Must never: leave out a crate.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::{paths, sh};

/// The programs whose parts are listed.
const ROOTS: [&str; 2] = ["minisgld", "minisglctl"];

/// Licences whose terms are met by naming them and giving their text. A crate under others is looked at first.
const ALLOWED: [&str; 12] = [
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "Unicode-3.0",
    "Zlib",
];

/// Beginnings of the names of files that hold a licence or a notice, in lower case.
const FILES: [&str; 6] = ["licen", "copying", "copyright", "notice", "unlicense", "authors"];

/// Bytes of such a file, at most.
const FILE_BYTES_MAX: u64 = 256 << 10;

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    repository: Option<String>,
    manifest_path: PathBuf,
    /// None for our own.
    source: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Deserialize)]
struct DependencyKind {
    /// None for what is linked; else `dev` or `build`.
    kind: Option<String>,
}

/// The notices, for people.
///
/// # Errors
/// A crate says no licence, or one that nobody has looked at.
pub fn text() -> Result<String> {
    let version =
        sh::capture(std::process::Command::new("rustc").arg("-vV"), "rustup installs it")?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("rustc -vV names no host")?;
    let args = ["metadata", "--locked", "--format-version", "1", "--filter-platform", host];
    let json = sh::capture(sh::cargo().args(args), "the workspace's manifests are broken")?;
    let metadata: Metadata = serde_json::from_str(&json)?;
    let by_hand = paths::root().join("packaging/third-party.txt");
    let by_hand = std::fs::read_to_string(&by_hand)
        .with_context(|| format!("reading {}", by_hand.display()))?;
    let linked = linked(&metadata);
    for package in &linked {
        let license = package.license.as_deref().unwrap_or("none");
        let Package { name, version, .. } = package;
        ensure!(
            is_allowed(license),
            "{name} {version} is under {license:?}; read it, and add it to {} if its terms are met",
            file!()
        );
    }
    Ok(write(&linked, &by_hand))
}

/// Crates of others in the programs, by name and version.
fn linked(metadata: &Metadata) -> Vec<&Package> {
    let packages: BTreeMap<&str, &Package> =
        metadata.packages.iter().map(|package| (package.id.as_str(), package)).collect();
    let nodes: BTreeMap<&str, &Node> =
        metadata.resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
    let is_root = |package: &&Package| package.source.is_none() && ROOTS.contains(&&*package.name);
    let mut open: Vec<&str> =
        metadata.packages.iter().filter(is_root).map(|package| package.id.as_str()).collect();
    let mut seen: BTreeSet<&str> = open.iter().copied().collect();
    while let Some(id) = open.pop() {
        for dependency in nodes.get(id).map_or(&[][..], |node| &node.deps) {
            let is_linked = dependency.dep_kinds.iter().any(|kind| kind.kind.is_none());
            if is_linked && seen.insert(&dependency.pkg) {
                open.push(&dependency.pkg);
            }
        }
    }
    let found = seen.iter().filter_map(|id| packages.get(id).copied());
    let mut linked: Vec<&Package> = found.filter(|package| package.source.is_some()).collect();
    linked.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    linked
}

/// Whether an SPDX expression can be met with [`ALLOWED`] alone: an OR of ANDs or, with parentheses, an AND of
/// ORs. Some crates still write `/` for OR.
fn is_allowed(expression: &str) -> bool {
    let plain = expression.replace(['(', ')'], " ").replace('/', " OR ");
    let allowed = |license: &str| ALLOWED.contains(&license.trim());
    if expression.contains('(') {
        plain.split(" AND ").all(|part| part.split(" OR ").any(allowed))
    } else {
        plain.split(" OR ").any(|part| part.split(" AND ").all(allowed))
    }
}

fn write(linked: &[&Package], by_hand: &str) -> String {
    let mut out = String::from(
        "minisgld and minisglctl contain the works of others that are listed here, with their licences.\n\n",
    );
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for Package { name, version, license, repository, manifest_path, .. } in linked {
        let license = license.as_deref().unwrap_or_default();
        let place = repository.as_deref().unwrap_or_default();
        let _ = writeln!(out, "{name} {version}  {license}  {place}");
        for text in texts_of(manifest_path.parent().unwrap_or(manifest_path)) {
            texts.entry(text).or_default().push(format!("{name} {version}"));
        }
    }
    let _ = write!(out, "\n{}\n{by_hand}", "=".repeat(78));
    for (text, users) in texts {
        let _ = write!(out, "\n{}\n{}\n\n{text}\n", "=".repeat(78), users.join(", "));
    }
    out
}

/// Licences and notices in a crate's folder, and in the folders in it: works in C that it brings.
fn texts_of(dir: &Path) -> BTreeSet<String> {
    let entries = |dir: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let mut texts = BTreeSet::new();
    let (folders, mut files): (Vec<_>, Vec<_>) =
        entries(dir).into_iter().partition(|path| path.is_dir());
    files.extend(folders.iter().flat_map(|folder| entries(folder)).filter(|path| path.is_file()));
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let small = file.metadata().is_ok_and(|data| data.len() <= FILE_BYTES_MAX);
        let is_source = [".rs", ".py", ".sh", ".json"].iter().any(|end| name.ends_with(end));
        let is_named = FILES.iter().any(|beginning| name.starts_with(beginning));
        if !(small && is_named && !is_source) {
            continue;
        }
        // What is not UTF-8 is a list of authors in an old encoding; no licence is.
        if let Ok(text) = std::fs::read_to_string(&file) {
            let lines: Vec<&str> = text.trim().lines().map(str::trim_end).collect();
            texts.insert(lines.join("\n"));
        }
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_met_or_not() {
        for met in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-3.0 OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
            "Apache-2.0 AND ISC",
        ] {
            assert!(is_allowed(met), "{met}");
        }
        for unmet in
            ["GPL-3.0", "none", "MIT AND GPL-3.0", "(MIT OR Apache-2.0) AND GPL-3.0", "MITnX"]
        {
            assert!(!is_allowed(unmet), "{unmet}");
        }
    }

    #[test]
    fn every_crate_that_is_linked_is_named_with_its_licence_and_no_other() {
        let text = text().unwrap();
        for named in ["\ntokio ", "\nhyper ", "\nclap ", "\nonig_sys "] {
            assert!(text.contains(named), "{named} is linked");
        }
        // Oniguruma and jemalloc are in folders of the crates that bring them; criterion is for tests.
        for said in ["K.Kosako", "jemalloc", "FlashInfer", "Permission is hereby granted"] {
            assert!(text.contains(said), "no word of {said}");
        }
        assert!(!text.contains("\ncriterion "), "tests are not in the programs");
    }
}
