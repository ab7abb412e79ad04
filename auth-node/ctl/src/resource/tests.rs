use mezite_proto::v1;

use super::*;
use crate::role_file::RoleFile;

fn refused(text: &str) -> String {
    let read = || -> Result<()> {
        for source in read(text)? {
            let _ = kind(&source.kind)?.plan(source)?;
        }
        Ok(())
    };
    let error = read().unwrap_err();
    assert!(error.is::<Usage>(), "{error:?}");
    error.to_string()
}

/// Kind and name of each document.
fn titles(text: &str) -> Vec<String> {
    read(text).unwrap().iter().map(Source::title).collect()
}

const TWO: &str = "\
# A comment before the first.
---
kind: user
metadata:
  name: alice
spec:
  roles: [access]
---
# Nothing here.
---
kind: lock
spec:
  target: role:contractor
";

#[test]
fn a_file_has_one_document_or_several() {
    assert_eq!(titles(TWO), ["document 1 (user/alice)", "document 2 (lock)"]);
    assert_eq!(titles("kind: user\n"), ["document 1 (user)"]);
    let one = r#"{"kind": "user", "metadata": {"name": "alice"}, "spec": {}}"#;
    assert_eq!(titles(one), ["document 1 (user/alice)"]);
    let several = ["document 1 (user/alice)", "document 2 (user/alice)"];
    assert_eq!(titles(&format!("{one}\n{one}\n")), several);
    assert_eq!(titles(&format!("[{one},\n{one}]")), several);
    for source in read(TWO).unwrap() {
        kind(&source.kind).unwrap().plan(source).unwrap();
    }
    for nothing in ["", "---\n", "# nothing\n", "[]"] {
        assert!(refused(nothing).contains("no document"), "{nothing:?}");
    }
}

#[test]
fn what_is_wrong_is_told_with_its_document_its_field_and_its_line() {
    let misspelt = TWO.replace("target:", "targt:");
    let said = refused(&misspelt);
    assert!(said.contains("document 2 (lock)") && said.contains("unknown field `targt`"), "{said}");
    assert!(said.contains("line 13"), "as an editor counts: {said}");

    let said = refused(&TWO.replace("kind: lock", "kind: locks_"));
    assert!(said.contains("`locks_`") && said.contains("user, role, token, lock, node"), "{said}");
    let said = refused(&TWO.replace("kind: lock", "knd: lock"));
    assert!(said.contains("document 2 has no `kind`") && said.contains("cluster_config"), "{said}");

    let said = refused("{\"kind\": \"user\",\n\"metadata\": {\"name\": \"a\"},\n\"spec\": {\"rols\": []}}");
    assert!(
        said.contains("document 1 (user/a)") && said.contains("rols") && said.contains("line 3"),
        "{said}"
    );
    let said = refused("kind: user\nmetadata: {name: a}\nspec: {roles: access}\n");
    assert!(said.contains("roles") && said.contains("line 3"), "{said}");
    let said = refused("kind: user\nmetadata: {name: a}\nspec: {traits: {team: [red], team: [blue]}}\n");
    assert!(said.contains("twice") || said.contains("duplicate"), "{said}");
    for wrong in
        ["kind: user\nversion: v2\nspec: {}\n", "kind: user\nmetadata: {}\n", "kind: [user]\n", "- a\n", "{"]
    {
        refused(wrong);
    }
}

/// In every kind, and in every part of its document.
#[test]
fn no_kind_takes_a_field_that_it_does_not_know() {
    for kind in KINDS {
        for text in [
            "stats: {}\nmetadata: {name: x}\nspec: {}\n",
            "metadata: {name: x, nam: y}\nspec: {}\n",
            "metadata: {name: x}\nspec: {no_such_field: 1}\n",
        ] {
            let said = refused(&format!("kind: {}\n{text}", kind.name()));
            assert!(said.contains("unknown field"), "{}: {said}", kind.name());
        }
    }
}

#[test]
fn references_are_kinds_with_or_without_a_name() {
    let texts = |texts: &[&str]| {
        let texts: Vec<_> = texts.iter().map(|&text| text.to_owned()).collect();
        let shown = |reference: Reference| (reference.kind.name(), reference.name);
        references(&texts).map(|found| found.into_iter().map(shown).collect::<Vec<_>>())
    };
    let found = texts(&["users", "role/dev,lock/1f", "token"]).unwrap();
    let (dev, lock) = (Some("dev".to_owned()), Some("1f".to_owned()));
    assert_eq!(found, [("user", None), ("role", dev), ("lock", lock), ("token", None)]);
    for wrong in ["", "user/", "user/a/b", "/a", "usr", "user,,role"] {
        assert!(texts(&[wrong]).unwrap_err().is::<Usage>(), "{wrong}");
    }
}

#[test]
fn what_the_cluster_says_is_no_difference() {
    let of = |revision, description: &str| {
        RoleFile::from(v1::Role {
            name: "dev".into(),
            description: description.into(),
            revision,
            ..Default::default()
        })
    };
    assert!(document::says_the_same(&of(1, ""), &of(2, "")).unwrap());
    assert!(!document::says_the_same(&of(1, ""), &of(1, "another")).unwrap());
}

#[test]
fn every_kind_is_told_once() {
    let mut names: Vec<_> = KINDS.iter().flat_map(|kind| [kind.name(), kind.plural()]).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    assert!(KINDS.iter().all(|kind| super::kind(kind.plural()).unwrap().name() == kind.name()));
}
