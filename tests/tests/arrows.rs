//! Which room may depend on which: the arrows of docs/ARCHITECTURE.md, held against cargo's own view; and that no modules
//! of a room use each other in a circle.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, MetadataCommand};
use minisgl_tests::modules::Modules;

/// Crate, and the workspace crates it may use.
const ARROWS: [(&str, &[&str]); 15] = [
    ("minisgl-proto", &[]),
    ("minisgl-accept", &[]),
    ("minisgl-kernels", &[]),
    ("minisgl-dialect", &[]),
    ("minisgl-cache", &[]),
    ("minisgl-sched", &["minisgl-cache", "minisgl-proto"]),
    ("minisgl-grammar", &["minisgl-proto"]),
    ("minisgl-engine", &["minisgl-sched", "minisgl-kernels", "minisgl-proto"]),
    ("minisgl-text", &["minisgl-dialect", "minisgl-proto"]),
    ("minisgl-http", &["minisgl-accept", "minisgl-dialect", "minisgl-proto"]),
    ("minisgl-control", &["minisgl-accept", "minisgl-dialect", "minisgl-proto"]),
    (
        "minisgld",
        &[
            "minisgl-proto",
            "minisgl-cache",
            "minisgl-sched",
            "minisgl-grammar",
            "minisgl-engine",
            "minisgl-http",
            "minisgl-text",
            "minisgl-control",
            "minisgl-kernels",
        ],
    ),
    ("minisglctl", &["minisgl-proto"]),
    ("minisgl-tests", &["minisgl-proto"]),
    ("xtask", &[]),
];

/// Crates that a room must not see, however far down.
const FORBIDDEN: [(&str, &[&str]); 6] = [
    // What a model's author wrote is read in a process of its own.
    ("minisgl-http", &["tokenizers", "minisgl-text"]),
    ("minisgl-control", &["tokenizers", "minisgl-text"]),
    ("minisgl-cache", &["tokio", "hyper", "axum", "cudarc"]),
    ("minisgl-sched", &["tokio", "hyper", "axum", "cudarc"]),
    ("minisgl-dialect", &["tokio", "hyper", "axum", "cudarc"]),
    ("minisgl-proto", &["tokio", "hyper", "axum", "cudarc"]),
];

#[test]
fn every_arrow_is_drawn() {
    let metadata = MetadataCommand::new().exec().unwrap();
    let members: BTreeSet<&str> =
        metadata.workspace_packages().iter().map(|package| package.name.as_str()).collect();
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.into_iter().collect();
    for package in metadata.workspace_packages() {
        let name = package.name.as_str();
        let Some(allowed) = allowed.get(name) else { panic!("{name} is not in the drawing") };
        for dependency in &package.dependencies {
            let to = dependency.name.as_str();
            let inside = members.contains(to) && dependency.kind == DependencyKind::Normal;
            assert!(!inside || allowed.contains(&to), "{name} -> {to} is not in the drawing");
        }
    }
}

#[test]
fn rooms_do_not_see_what_they_must_not() {
    let metadata = MetadataCommand::new().exec().unwrap();
    let resolve = metadata.resolve.as_ref().unwrap();
    for (room, forbidden) in FORBIDDEN {
        let package = metadata.packages.iter().find(|p| p.name.as_str() == room).unwrap();
        let mut seen = BTreeSet::from([&package.id]);
        let mut open = vec![&package.id];
        while let Some(id) = open.pop() {
            let node = resolve.nodes.iter().find(|node| node.id == *id).unwrap();
            for dependency in &node.deps {
                let normal = dependency.dep_kinds.iter().any(|k| k.kind == DependencyKind::Normal);
                if normal && seen.insert(&dependency.pkg) {
                    open.push(&dependency.pkg);
                }
            }
        }
        for id in seen {
            let name = metadata[id].name.as_str();
            assert!(!forbidden.contains(&name), "{room} sees {name}");
        }
    }
}

#[test]
fn modules_use_each_other_in_no_circle() {
    let metadata = MetadataCommand::new().exec().unwrap();
    let mut circles = Vec::new();
    for package in metadata.workspace_packages() {
        let source = package.manifest_path.parent().unwrap().join("src");
        let found = Modules::of(source.as_std_path()).circles().into_iter();
        circles.extend(found.map(|circle| format!("{}: {circle:#?}", package.name)));
    }
    assert!(circles.is_empty(), "{}", circles.join("\n"));
}
