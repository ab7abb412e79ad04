use std::fs;

use super::*;

/// The folder of an agent, and two for spools.
fn world() -> (tempfile::TempDir, AgentDir, AgentState, [PathBuf; 2]) {
    let temp = tempfile::tempdir().unwrap();
    let dir = AgentDir::create(&temp.path().join("agent")).unwrap();
    let state = AgentState::new("example".into(), vec!["a:1".into()], "web1".into());
    dir.save(&state).unwrap();
    let spools = ["one", "other"].map(|name| temp.path().join(name));
    (temp, dir, state, spools)
}

/// A session that was not sent.
fn leave_one(spool: &Path) -> PathBuf {
    let entry = spool.join("sessions/0190a1b2-0000-4000-8000-000000000001");
    fs::create_dir_all(&entry).unwrap();
    entry
}

#[test]
fn a_service_records_where_sshd_was_told_to_and_nowhere_else() {
    let (_temp, dir, mut state, [one, other]) = world();
    assert_eq!(joined(None, &dir, &state).unwrap(), None);
    let refused = |given: &Path, state: &AgentState| {
        let error = joined(Some(given), &dir, state).unwrap_err();
        assert!(error.is::<Usage>());
        error.to_string()
    };
    let said = refused(&one, &state);
    let remedy =
        |spool: &Path| format!("agent join --out {} --spool {}`", dir.path().display(), spool.display());
    assert!(said.contains("sshd was not told") && said.contains(&remedy(&one)), "{said}");

    keep(&dir, &mut state, Some(one.clone())).unwrap();
    assert_eq!(joined(None, &dir, &state).unwrap(), Some(one.clone()));
    assert_eq!(joined(Some(&one), &dir, &state).unwrap(), Some(one.clone()));
    // By another name.
    let same = one.join("../one");
    assert_eq!(joined(Some(&same), &dir, &state).unwrap(), Some(one.clone()));
    let said = refused(&other, &state);
    assert!(said.contains(&one.display().to_string()) && said.contains(&remedy(&other)), "{said}");
}

#[test]
fn what_sshd_cannot_be_told_is_not_kept() {
    let (_temp, dir, mut state, [one, _]) = world();
    keep(&dir, &mut state, Some(one.clone())).unwrap();
    assert!(keep(&dir, &mut state, Some("/var/spool/a b".into())).unwrap_err().is::<Usage>());
    assert_eq!(dir.load().unwrap().unwrap().spool, Some(one));
    keep(&dir, &mut state, None).unwrap();
    assert_eq!(dir.load().unwrap().unwrap().spool, None);
}

#[test]
fn an_agent_with_something_left_to_send_does_not_leave() {
    let (_temp, dir, _, [one, _]) = world();
    refuse_unsent(&dir, &one, false).unwrap();
    let entry = leave_one(&one);
    for (local, waits) in [(false, true), (true, false)] {
        let said = refuse_unsent(&dir, &one, local).unwrap_err().to_string();
        let begin = format!("{} holds 1 session and 0 events that were not sent", one.display());
        assert!(said.starts_with(&begin) && said.contains("--force"), "{said}");
        assert_eq!(said.contains("agent run --dir"), waits, "{said}");
    }
    // What is set aside nothing sends.
    fs::create_dir(one.join("aside")).unwrap();
    fs::rename(&entry, one.join("aside").join(entry.file_name().unwrap())).unwrap();
    refuse_unsent(&dir, &one, false).unwrap();
    let said = farewell(&one);
    assert!(said.contains(&format!("--spool {}", one.display())) && said.contains("set aside"), "{said}");
}

#[test]
fn that_nothing_is_recorded_is_told_once_for_each_mode() {
    let (dir, mut unrecorded) = (Path::new("/etc/mezite"), Unrecorded::default());
    let mut told = |mode| unrecorded.news(mode, dir);
    let strict = told(Mode::Strict).unwrap();
    assert!(
        strict.starts_with("the cluster wants") && strict.contains("agent join --out /etc/mezite --spool "),
        "{strict}"
    );
    assert_eq!(told(Mode::Strict), None);
    assert!(told(Mode::BestEffort).unwrap().starts_with("sessions on this host"));
    assert_eq!(told(Mode::BestEffort), None);
    assert_eq!(told(Mode::Off), None);
    assert_eq!(told(Mode::Strict), Some(strict));
}
