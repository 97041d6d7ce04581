//! The README's routing table: every test that it names is there, and every preset has a row.

use std::path::Path;

use fused_moe::routing::presets::published;

use crate::golden;

struct Row {
    system: String,
    preset: String,
    tests: String,
}

fn table() -> Vec<Row> {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).expect("a README");
    let (_, section) = readme.split_once("\n## Routing\n").expect("a section on routing");
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| ")).skip(1);
    rows.map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [system, _, preset, tests] = cells[..] else { panic!("four cells: {line}") };
        Row { system: system.into(), preset: preset.into(), tests: tests.into() }
    })
    .collect()
}

/// `module::function` in backticks, and the cases in the brackets behind it.
fn tests(row: &Row) -> Vec<(String, String, Vec<String>)> {
    let mut found = Vec::new();
    for (i, part) in row.tests.split('`').enumerate() {
        match part.split_once("::") {
            Some((module, function)) if i % 2 == 1 => found.push((module.into(), function.into(), Vec::new())),
            _ if i % 2 == 1 => panic!("{}: {part} is no module::function", row.system),
            _ => {
                let cases = part.split_once('(').and_then(|(_, rest)| rest.split_once(')')).map(|(cases, _)| cases);
                let cases = cases.into_iter().flat_map(|cases| cases.split(',')).map(|case| case.trim().to_owned());
                if let Some((_, _, of)) = found.last_mut() {
                    *of = cases.collect::<Vec<_>>();
                }
            }
        }
    }
    found
}

#[test]
fn every_row_names_tests_that_exist() {
    let rows = table();
    assert!(rows.len() >= 30, "only {} rows", rows.len());
    for row in &rows {
        let tests = tests(row);
        assert!(!tests.is_empty(), "{} names no test", row.system);
        for (module, function, cases) in tests {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/routing").join(&module).with_extension("rs");
            let source =
                std::fs::read_to_string(&path).unwrap_or_else(|_| panic!("{}: no {}", row.system, path.display()));
            // A property has an attribute of its own and arguments.
            let is_there = source.contains(&format!("#[test]\n    fn {function}("))
                || source.contains(&format!("#[test]\nfn {function}()"));
            assert!(is_there, "{}: {module} has no test {function}", row.system);
            for case in cases {
                let is_one = |name: &String| match (case.strip_prefix('*'), case.strip_suffix('*')) {
                    (Some(end), _) => name.ends_with(end),
                    (_, Some(start)) => name.starts_with(start),
                    _ => *name == case,
                };
                assert!(golden::cases(&function).iter().any(is_one), "{}: {function} has no case {case}", row.system);
            }
        }
    }
}

#[test]
fn every_preset_has_its_row() {
    let rows = table();
    for preset in published() {
        let is_its = |row: &&Row| row.preset == format!("`{}`", preset.name);
        assert_eq!(rows.iter().filter(is_its).count(), 1, "{}", preset.name);
    }
    let named = rows.iter().filter(|row| row.preset.starts_with('`')).count();
    assert_eq!(named, published().len(), "a row names a preset that is none");
}
