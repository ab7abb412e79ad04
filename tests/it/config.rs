//! Configuration files: what is misspelt or out of bounds is named, before anything is started.

use std::{fs, path::Path, process::Command};

use mezite_e2e::{Output, Scratch, binary, run};

const AUTH: &str = "data_dir = '/nowhere'\nadvertise = 'a.example:3025'\npeer_advertise = 'a.example:3026'\n";
const INGEST: &str = "data_dir = '/nowhere'\nstore = 'file:///nowhere'\n";

/// Both programs, the least that each needs, and the prefix of its variables.
const PROGRAMS: [(&str, &str, &str); 2] =
    [("auth-node", AUTH, "MEZITE_AUTH__"), ("recording-ingest", INGEST, "MEZITE_INGEST__")];

fn try_config(dir: &Scratch, program: &str, text: &str, args: &[&str], env: &[(&str, &str)]) -> Output {
    let file = dir.path().join("config.toml");
    fs::write(&file, text).unwrap();
    let mut command = Command::new(binary(program));
    run(command.args(["run", "--config"]).arg(&file).args(args).envs(env.iter().copied()))
}

#[test]
fn what_is_good_is_accepted_and_nothing_is_started() {
    let dir = Scratch::new();
    for (program, least, prefix) in PROGRAMS {
        let _ = try_config(&dir, program, least, &["--check-config"], &[]).ok();
        // The printed one has every default, and is itself a configuration that says the same.
        let printed = try_config(&dir, program, least, &["--print-config"], &[]).ok();
        assert!(printed.contains("diagnostics_listen") && printed.contains("[limits]"), "{printed}");
        assert_eq!(try_config(&dir, program, &printed, &["--print-config"], &[]).ok(), printed);
        // A flag wins over the environment, and that over the file.
        let text = format!("diagnostics_listen = '127.0.0.1:1'\n{least}");
        let variable = format!("{prefix}DIAGNOSTICS_LISTEN");
        let env = [(variable.as_str(), "127.0.0.1:2")];
        let flags = ["--print-config", "--set", "diagnostics_listen=127.0.0.1:3"];
        assert!(try_config(&dir, program, &text, &flags[..1], &[]).ok().contains("\"127.0.0.1:1\""));
        assert!(try_config(&dir, program, &text, &flags[..1], &env).ok().contains("\"127.0.0.1:2\""));
        assert!(try_config(&dir, program, &text, &flags, &env).ok().contains("\"127.0.0.1:3\""));
    }
    assert!(!Path::new("/nowhere").exists());
}

#[test]
fn what_is_unknown_is_refused_by_name_wherever_it_comes_from() {
    let dir = Scratch::new();
    for (program, least, prefix) in PROGRAMS {
        let refused = |text: &str, args: &[&str], env: &[(&str, &str)]| {
            for mode in [&["--check-config"][..], &["--print-config"], &[]] {
                let output = try_config(&dir, program, text, &[mode, args].concat(), env);
                assert_ne!(output.code, 0, "{text} {args:?}");
                assert!(output.stderr.contains("colour"), "{program}: {output:?}");
                assert!(output.stdout.is_empty(), "{output:?}");
            }
        };
        refused(&format!("colour = 'green'\n{least}"), &[], &[]);
        refused(&format!("{least}[limits]\ncolour = 1\n"), &[], &[]);
        refused(least, &["--set", "limits.colour=1"], &[]);
        refused(least, &[], &[(&format!("{prefix}COLOUR"), "green")]);
    }
}

#[test]
fn what_is_wrong_is_named() {
    let dir = Scratch::new();
    for (program, least, _) in PROGRAMS {
        for (set, name) in [
            ("listen=nowhere", "listen"),
            ("diagnostics_listen=1", "diagnostics_listen"),
            ("limits.max_connections=0", "limits.max_connections"),
            ("limits.handshake_timeout=soon", "handshake_timeout"),
            ("limits.handshake_timeout=0s", "limits.handshake_timeout"),
            ("log.format=xml", "format"),
            ("log.level=a=b=c", "log.level"),
        ] {
            let output = try_config(&dir, program, least, &["--check-config", "--set", set], &[]);
            assert_ne!(output.code, 0, "{program} {set}");
            assert!(output.stderr.contains(name), "{program} {set}: {output:?}");
        }
        for missing in least.lines() {
            let text = least.replace(&format!("{missing}\n"), "");
            let output = try_config(&dir, program, &text, &["--check-config"], &[]);
            let name = missing.split(' ').next().unwrap();
            assert!(output.code != 0 && output.stderr.contains(name), "{program} {name}: {output:?}");
        }
        let output = try_config(&dir, program, "listen = \n", &["--check-config"], &[]);
        assert!(output.code != 0 && output.stderr.contains("config.toml"), "{output:?}");
        let mut command = Command::new(binary(program));
        let output = run(command.args(["run", "--check-config", "--config", "/nowhere/config.toml"]));
        assert!(output.code != 0 && output.stderr.contains("/nowhere/config.toml"), "{output:?}");
    }
}
