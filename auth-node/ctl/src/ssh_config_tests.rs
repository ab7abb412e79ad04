use super::*;

fn logins(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn config<'a>(dir: &'a str, hosts: &'a [Host]) -> Config<'a> {
    Config {
        profile: "work",
        home: None,
        cluster_name: "example",
        dir: Path::new(dir),
        program: Path::new("/usr/bin/mezctl"),
        hosts,
        login: None,
    }
}

#[test]
fn a_host_is_where_its_address_says_and_known_by_its_name() {
    let node = |address: &str| Host::node("web1.example.org", address, &[]).unwrap().block();
    assert_eq!(node("web1.example.org:22"), "");
    assert_eq!(node(""), "");
    for (address, host, port) in [
        ("10.0.0.1:22", "10.0.0.1", 22),
        ("web1.example.org:2222", "web1.example.org", 2222),
        ("[2001:db8::7]:22", "2001:db8::7", 22),
    ] {
        let block = node(address);
        let wanted = format!("    HostName {host}\n    Port {port}\n    HostKeyAlias web1.example.org\n");
        assert_eq!(block, format!("Host web1.example.org\n{wanted}"));
    }
    for nowhere in
        ["10.0.0.1", "a b:22", "a:0", "a:70000", "[x]:22", ":22", "2001:db8::7:22", "a\nb:22", "-o:22"]
    {
        assert_eq!(node(nowhere), "", "{nowhere}");
    }
}

#[test]
fn who_has_one_login_need_not_say_it() {
    let node = |names: &[&str]| Host::node("web1", "web1:22", &logins(names)).unwrap().block();
    assert_eq!(node(&["deploy"]), "Host web1\n    User deploy\n");
    assert_eq!(node(&["deploy", "root"]), "");
    assert_eq!(node(&["a b"]), "");
}

/// A name is the host's, and what the cluster tells of it must not become a line or a command.
#[test]
fn what_is_no_name_is_not_written() {
    for wrong in ["", "-oProxyCommand=x", "a b", "a\"", "a,b", "a\nHost *", "$(x)", "*", "a%h", "a;b"] {
        assert_eq!(Host::node(wrong, "a:22", &[]), None, "{wrong}");
    }
    for pattern in ["*", "*.example.org", "web?", "!db.example.org", "10.0.0.*"] {
        assert_eq!(Host::pattern(pattern).unwrap().name(), pattern);
    }
    for wrong in ["", "!", "a b", "*\"", "a,b", "!!a", "%h"] {
        assert!(Host::pattern(wrong).unwrap_err().is::<Usage>(), "{wrong}");
    }
}

#[test]
fn paths_are_quoted_for_ssh_and_for_the_shell() {
    let hosts = [Host::pattern("*.example.org").unwrap()];
    let text = config("/home/al ice/100%/ssh", &hosts).render().unwrap();
    assert!(text.contains("IdentityFile \"/home/al ice/100%%/ssh/key\"\n"), "{text}");
    assert!(text.contains("exec \"/usr/bin/mezctl --profile work certs refresh\"\n"), "{text}");
    let home = Path::new("/home/al ice/100%");
    let text = Config { home: Some(home), ..config("/s", &hosts) }.render().unwrap();
    assert!(text.contains("exec \"/usr/bin/mezctl --home '/home/al ice/100%%' --profile work"), "{text}");
    for wrong in ["relative", "/a\"b", "/a'b", "/a\\b", "/${HOME}", "/a\nb", "/a`b"] {
        assert!(config(wrong, &hosts).render().unwrap_err().is::<Usage>(), "{wrong}");
    }
    let login = Config { login: Some("a b"), ..config("/s", &hosts) };
    assert!(login.render().unwrap_err().is::<Usage>());
}

#[test]
fn each_host_is_named_once_and_a_login_for_all_counts_first() {
    let node = |name: &str| Host::node(name, &format!("{name}:2222"), &logins(&["deploy"])).unwrap();
    let hosts = [node("web2"), node("web1"), node("web1")];
    let text = Config { login: Some("root"), ..config("/s", &hosts) }.render().unwrap();
    assert!(text.contains("Match originalhost \"web1,web2\" exec") && text.contains("\nHost web1 web2\n"));
    let at = |part: &str| text.find(part).unwrap();
    assert!(at("    User root\n") < at("    User deploy\n"), "{text}");
}
