//! The configurations as a page: each field with its comment, which says its unit, its bounds and its default.

use std::{collections::BTreeMap, fmt::Write as _, fs};

use mezite_e2e::tools::repository;
use syn::{Attribute, Expr, Field, Fields, Item, ItemStruct, Lit, Meta, Type};

/// A program, the files with its structs, and how its variables begin.
const PROGRAMS: [(&str, &[&str], &str); 2] = [
    ("auth-node", &["auth-node/src/config.rs", "auth-node/src/config/web.rs"], "MEZITE_AUTH__"),
    ("recording-ingest", &["recording-ingest/src/config.rs"], "MEZITE_INGEST__"),
];
/// What both have.
const SHARED: &[&str] = &["auth-node/daemon/src/logging.rs", "auth-node/daemon/src/traces.rs"];

pub(super) fn reference() -> String {
    let mut page = String::from(
        "# Configuration\n\nGenerated from the structs that configurations are read into: `MEZITE_WRITE_REFERENCES=1 tests/run references`.\n\n\
         A configuration is a TOML file (`--config FILE`). A field `a.b` is also the flag `--set a.b=VALUE`, which wins, and an environment\n\
         variable, which wins over the file. `--check-config` says what is wrong, `--print-config` what is in force. Durations are\n\
         written like `30s` or `12h`. Unknown fields are refused.\n",
    );
    for (program, files, prefix) in PROGRAMS {
        let structs = structs(files.iter().chain(SHARED));
        let _ = write!(page, "\n## {program}\n\nEnvironment: `{prefix}A__B` for `a.b`.\n");
        let config = &structs["Config"];
        let (tables, own): (Vec<_>, Vec<_>) =
            config.fields.iter().partition(|field| structs.contains_key(&type_name(&field.ty)));
        table(&mut page, "", &own);
        for field in tables {
            let name = field.ident.as_ref().unwrap().to_string();
            let _ = write!(page, "\n### {program}: `[{name}]`\n\n{}\n", doc(&field.attrs));
            let fields: Vec<_> = structs[&type_name(&field.ty)].fields.iter().collect();
            table(&mut page, &format!("{name}."), &fields);
        }
    }
    page
}

fn structs<'a>(files: impl Iterator<Item = &'a &'a str>) -> BTreeMap<String, ItemStruct> {
    let mut structs = BTreeMap::new();
    for path in files {
        let source = fs::read_to_string(repository().join(path)).unwrap();
        for item in syn::parse_file(&source).unwrap().items {
            if let Item::Struct(item) = item
                && matches!(item.fields, Fields::Named(_))
            {
                structs.insert(item.ident.to_string(), item);
            }
        }
    }
    structs
}

fn table(page: &mut String, prefix: &str, fields: &[&Field]) {
    page.push_str("\n| field | |\n| --- | --- |\n");
    for field in fields {
        let name = field.ident.as_ref().unwrap();
        let comment = doc(&field.attrs).replace('|', "\\|");
        assert!(!comment.is_empty(), "{prefix}{name} has no comment");
        let _ = writeln!(page, "| `{prefix}{name}` | {comment} |");
    }
}

/// The comment, as one paragraph; links to code are names.
fn doc(attrs: &[Attribute]) -> String {
    let lines = attrs.iter().filter_map(|attr| match &attr.meta {
        Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
            Expr::Lit(text) => match &text.lit {
                Lit::Str(text) => Some(text.value().trim().to_owned()),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    });
    lines.collect::<Vec<_>>().join(" ")
}

/// The last part of a type's path.
fn type_name(of: &Type) -> String {
    match of {
        Type::Path(path) => path.path.segments.last().map(|last| last.ident.to_string()).unwrap_or_default(),
        _ => String::new(),
    }
}
