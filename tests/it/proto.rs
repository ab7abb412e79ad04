//! The protocol's files.

use std::{ffi::OsStr, fs, path::Path, process::Command};

use mezite_e2e::{Scratch, all_files, run, tools};

#[test]
fn buf_has_nothing_to_say() {
    let folder = tools::repository().join("proto");
    let output = run(Command::new(tools::buf()).arg("lint").current_dir(&folder));
    assert_eq!((output.code, output.stdout.as_str()), (0, ""), "{output:?}");
}

#[test]
fn buf_would_say_something() {
    let (folder, copy) = (tools::repository().join("proto"), Scratch::new());
    let wanted = |path: &Path| matches!(path.extension().and_then(OsStr::to_str), Some("proto" | "yaml"));
    for file in all_files(&folder).iter().filter(|path| wanted(path)) {
        let to = copy.path().join(file.strip_prefix(&folder).unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(file, to).unwrap();
    }
    let file = copy.path().join("v1/auth.proto");
    let spoilt =
        fs::read_to_string(&file).unwrap().replace("string cluster_name = 1;", "string ClusterName = 1;");
    fs::write(&file, spoilt).unwrap();
    let output = run(Command::new(tools::buf()).arg("lint").current_dir(copy.path()));
    assert!(output.code != 0 && output.stdout.contains("ClusterName"), "{output:?}");
}
