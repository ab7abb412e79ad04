use std::path::PathBuf;

use super::*;

const THIS: &str = "6f9619ff-8b86-4011-b42d-00c04fc964ff";

fn snippet<'a>(dir: &'a Path, agent_id: &'a str) -> Snippet<'a> {
    Snippet { dir, cluster_name: "test", agent_id, command_user: "nobody", recorder: None }
}

#[test]
fn the_snippet_is_what_the_documentation_shows() {
    let text = snippet(Path::new("/etc/mezite"), THIS).render().unwrap();
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let command = format!(r"AuthorizedPrincipalsCommand /usr/bin/printf %%s\n %u %u@{THIS}");
    assert_eq!(
        lines,
        [
            r#"HostKey "/etc/mezite/ssh_host_ed25519_key""#,
            r#"HostCertificate "/etc/mezite/ssh_host_ed25519_key-cert.pub""#,
            r#"TrustedUserCAKeys "/etc/mezite/trusted_user_ca_keys""#,
            r#"RevokedKeys "/etc/mezite/revoked_keys""#,
            &command,
            "AuthorizedPrincipalsCommandUser nobody",
        ]
    );
}

#[test]
fn sessions_go_through_the_recorder_where_there_is_one() {
    let recorded = |program, socket| {
        let recorder = Some(Recorder { program: Path::new(program), socket: Path::new(socket) });
        Snippet { recorder, ..snippet(Path::new("/etc/mezite"), THIS) }.render()
    };
    let text = recorded("/usr/bin/mezctl", "/var/spool/mezite/record.sock").unwrap();
    let without = snippet(Path::new("/etc/mezite"), THIS).render().unwrap();
    let lines: Vec<_> =
        text.strip_prefix(&without).unwrap().lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(
        lines,
        [
            "ExposeAuthInfo yes",
            "PermitUserRC no",
            "SetEnv SHLVL=1",
            "ForceCommand /usr/bin/mezctl record --socket /var/spool/mezite/record.sock",
        ]
    );
    for path in ["mezctl", "/a b", "/a;b", "/$HOME", "/a\nb", "/a'b"] {
        assert!(recorded(path, "/s").is_err() && recorded("/m", path).is_err(), "{path:?}");
    }
}

#[test]
fn what_could_add_a_line_is_refused() {
    for dir in ["relative", "/a\"b", "/a\nPermitRootLogin yes", "/a\\b"] {
        assert!(snippet(&PathBuf::from(dir), THIS).render().is_err(), "{dir:?}");
    }
    for id in ["a b", "x\nPermitEmptyPasswords yes", "%u", "\""] {
        assert!(snippet(Path::new("/etc/mezite"), id).render().is_err(), "{id:?}");
    }
}
