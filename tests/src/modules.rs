//! Which module of a crate uses which, read from its source: `use crate::...`, `super::...`, and such paths in code.
//!
//! Owns: just enough of Rust's grammar for that. Must never: look at tests, which may use what they like.
//!
//! A module's graph is that of its children, each with all that is below it: an edge where a file of one names
//! something of another. Parents and children may know each other. What is re-exported counts where it comes from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A module, from the crate's root on.
type Module = Vec<String>;

/// The modules of one crate.
#[derive(Debug, Default)]
pub struct Modules {
    files: Vec<(Module, PathBuf, String)>,
    known: BTreeSet<Module>,
    /// Names that a module re-exports, and where they come from.
    exports: BTreeMap<(Module, String), Module>,
}

/// Siblings that use each other, directly or around: their parent, their names, and a reason for each edge.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Circle {
    /// Of all of them, `crate` for the root.
    pub parent: String,
    /// In the order of the alphabet.
    pub members: Vec<String>,
    /// `a -> b in file`.
    pub edges: Vec<String>,
}

impl Modules {
    /// Reads the folder with `lib.rs` or `main.rs`.
    ///
    /// # Panics
    /// It cannot be read.
    pub fn of(source: &Path) -> Modules {
        let mut files = Vec::new();
        let mut folders = vec![source.to_path_buf()];
        while let Some(folder) = folders.pop() {
            let entries = std::fs::read_dir(&folder);
            for entry in entries.unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
                let path = entry.expect("an entry of a folder that was opened").path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|end| end == "rs") {
                    let text = std::fs::read_to_string(&path).expect("source is text");
                    files.push((path.strip_prefix(source).expect("below it").to_path_buf(), text));
                }
            }
        }
        Modules::from(files)
    }

    fn from(files: Vec<(PathBuf, String)>) -> Modules {
        let mut modules = Modules::default();
        for (path, text) in files {
            let mut module: Module = path
                .with_extension("")
                .iter()
                .map(|part| part.to_string_lossy().into_owned())
                .collect();
            if module.iter().any(|part| part == "tests" || part.ends_with("_tests")) {
                continue;
            }
            if module.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
                module.pop();
            }
            modules.known.insert(module.clone());
            modules.files.push((module, path, code_of(&text)));
        }
        let exports = modules.files.iter().flat_map(|(module, _, text)| {
            let paths = public_uses(text).into_iter();
            paths.filter_map(|mut path| {
                let name = path.pop()?;
                let from = modules.resolve(module, &path)?;
                Some(((module.clone(), name), from))
            })
        });
        modules.exports = exports.collect();
        modules
    }

    /// The module that a path names something of, where the path stands in `module`.
    fn resolve(&self, module: &Module, path: &[String]) -> Option<Module> {
        let mut at = module.clone();
        let mut rest = path;
        match rest.first()?.as_str() {
            "crate" => at.clear(),
            "self" => {}
            "super" => drop(at.pop()),
            // Of a child; anything else is another crate's.
            child => {
                at.push(child.to_owned());
                self.known.contains(&at).then_some(())?;
            }
        }
        rest = &rest[1..];
        for part in rest {
            if part == "super" {
                at.pop();
                continue;
            }
            let mut child = at.clone();
            child.push(part.clone());
            if self.known.contains(&child) {
                at = child;
            } else if let Some(from) = self.exports.get(&(at.clone(), part.clone())) {
                at = from.clone();
            } else {
                break;
            }
        }
        Some(at)
    }

    /// All circles.
    pub fn circles(&self) -> Vec<Circle> {
        // Parent, then who uses whom, and where that is seen.
        let mut graphs: BTreeMap<Module, BTreeMap<(String, String), String>> = BTreeMap::new();
        for (module, path, text) in &self.files {
            for used in paths(text).iter().filter_map(|path| self.resolve(module, path)) {
                let common = module.iter().zip(&used).take_while(|(a, b)| a == b).count();
                if let (Some(from), Some(to)) = (module.get(common), used.get(common)) {
                    let graph = graphs.entry(module[..common].to_vec()).or_default();
                    let edge = (from.clone(), to.clone());
                    graph.entry(edge).or_insert_with(|| path.display().to_string());
                }
            }
        }
        let mut circles = Vec::new();
        for (parent, graph) in &graphs {
            let nodes: BTreeSet<&String> = graph.keys().flat_map(|(from, to)| [from, to]).collect();
            let reach = |start: &String| {
                let (mut seen, mut open) = (BTreeSet::new(), vec![start.clone()]);
                while let Some(node) = open.pop() {
                    let next = graph.keys().filter(|(from, _)| *from == node).map(|(_, to)| to);
                    open.extend(next.filter(|&to| seen.insert(to.clone())).cloned());
                }
                seen
            };
            let reached: BTreeMap<&String, BTreeSet<String>> =
                nodes.iter().map(|&node| (node, reach(node))).collect();
            let mut done = BTreeSet::new();
            for &node in &nodes {
                let around = |other: &&String| {
                    reached[node].contains(*other) && reached[*other].contains(node)
                };
                let members: Vec<String> = nodes.iter().copied().filter(around).cloned().collect();
                if members.is_empty() || !done.insert(members.clone()) {
                    continue;
                }
                let inside = |name: &String| members.contains(name);
                let edges = graph.iter().filter(|((from, to), _)| inside(from) && inside(to));
                let edges = edges.map(|((from, to), file)| format!("{from} -> {to} in {file}"));
                let parent = [&["crate".to_owned()], &parent[..]].concat().join("::");
                circles.push(Circle { parent, members: members.clone(), edges: edges.collect() });
            }
        }
        circles
    }
}

/// Without comments and without the module of tests that ends a file. One that is a file of its own ends nothing.
fn code_of(text: &str) -> String {
    let marks = text.match_indices("#[cfg(test)]\n");
    let inline = marks.map(|(at, mark)| (at, text[at + mark.len()..].lines().next().unwrap_or("")));
    let mut tests = inline.filter(|(_, line)| line.contains("mod ") && line.ends_with('{'));
    let end = tests.next().map_or(text.len(), |(at, _)| at);
    let lines = text[..end].lines();
    lines.map(|line| line.split("//").next().unwrap_or("").to_owned() + "\n").collect()
}

/// Every path of the crate's own in `text`, groups taken apart.
fn paths(text: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in text.match_indices(start) {
            let before = text[..at].chars().next_back();
            // A part of a longer word or path; `$crate` is a macro's.
            if before.is_some_and(|c| c.is_alphanumeric() || ['_', ':', '$'].contains(&c)) {
                continue;
            }
            tree(&text[at..], &mut Vec::new(), &mut found);
        }
    }
    found
}

/// Every path that a module re-exports.
fn public_uses(text: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for start in ["pub use ", "pub(crate) use ", "pub(super) use "] {
        for (at, _) in text.match_indices(start) {
            tree(&text[at + start.len()..], &mut Vec::new(), &mut found);
        }
    }
    found
}

/// A path or a tree of them, as `use` has it; returns what comes after.
fn tree<'a>(text: &'a str, before: &mut Vec<String>, found: &mut Vec<Vec<String>>) -> &'a str {
    let depth = before.len();
    let mut rest = text.trim_start();
    loop {
        if let Some(mut group) = rest.strip_prefix('{') {
            loop {
                group = tree(group, before, found).trim_start();
                match group.strip_prefix(',') {
                    Some(next) => group = next,
                    None => break,
                }
            }
            rest = group.strip_prefix('}').unwrap_or(group);
            break;
        }
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let word = &rest[..end];
        rest = &rest[end..];
        if !word.is_empty() {
            before.push(word.to_owned());
        }
        match rest.strip_prefix("::") {
            Some(next) if !word.is_empty() => rest = next,
            _ => {
                if before.len() > depth {
                    found.push(before.clone());
                }
                // A name of its own does not matter, nor does a glob.
                rest = rest.strip_prefix('*').unwrap_or(rest);
                if let Some(named) = rest.trim_start().strip_prefix("as ") {
                    let end = named.find([',', '}', ';', '\n']).unwrap_or(named.len());
                    rest = &named[end..];
                }
                break;
            }
        }
    }
    before.truncate(depth);
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circles(files: &[(&str, &str)]) -> Vec<Circle> {
        let files = files.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned()));
        Modules::from(files.collect()).circles()
    }

    #[test]
    fn a_circle_is_found_with_its_reasons() {
        let found = circles(&[
            ("lib.rs", "mod a; mod b; mod c; mod d; pub use c::Thing;"),
            (
                "a.rs",
                "#[cfg(test)]\nmod tests;\nuse crate::b::{self, deep::{X, Y as Z}}; use crate::d::D;",
            ),
            ("b.rs", "mod deep;"),
            ("b/deep.rs", "// use crate::a::No;\nfn f() -> crate::Thing { todo!() }"),
            ("c/mod.rs", "use super::a;"),
            ("d.rs", "use std::io; use other::a::B;\n#[cfg(test)]\nmod tests {\nuse crate::a;\n}"),
        ]);
        let [circle] = &found[..] else { panic!("{found:?}") };
        assert_eq!(
            (circle.parent.as_str(), &circle.members[..]),
            ("crate", &["a", "b", "c"].map(str::to_owned)[..])
        );
        assert_eq!(circle.edges, ["a -> b in a.rs", "b -> c in b/deep.rs", "c -> a in c/mod.rs"]);
    }

    #[test]
    fn parents_and_children_may_know_each_other_and_siblings_below_may_not() {
        let parent = ("lib.rs", "mod a; use a::one::One;");
        let a = ("a.rs", "mod one; mod two; use one::One; struct A;");
        let two = ("a/two.rs", "use super::{A, one::One};");
        assert_eq!(circles(&[parent, a, two, ("a/one.rs", "use super::A; use crate::Root;")]), []);
        let found = circles(&[parent, a, two, ("a/one.rs", "use super::two::Two;")]);
        let names: Vec<_> = found.iter().map(|circle| circle.parent.as_str()).collect();
        assert_eq!(names, ["crate::a"]);
    }
}
