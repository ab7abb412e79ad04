//! Programs that nobody here wrote, installed by their registries' own clients into the user's cache when the
//! environment does not say where they are.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use crate::ctl::run;

/// Version of buf that the protocol is checked with.
const BUF: &str = "1.75.0";
/// Version of `oidc-provider`, a provider of OpenID Connect.
const OIDC_PROVIDER: &str = "8.8.1";

/// Debian's library that changes what time it is for one process.
const FAKETIME: &str = "faketime/libfaketimeMT.so.1";

/// The folder of the repository.
#[must_use]
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A Python with what `tests/python/requirements.txt` names: `MEZITE_PYTHON`, or an environment made for it.
#[must_use]
pub fn python() -> PathBuf {
    if let Some(python) = given("MEZITE_PYTHON") {
        return python;
    }
    let requirements = repository().join("tests/python/requirements.txt");
    let text = fs::read_to_string(&requirements).unwrap();
    let name = format!("python-{}", text.split_whitespace().collect::<Vec<_>>().join("-").replace("==", "-"));
    let dir = cached(&name, |dir| {
        let _ = run(Command::new("python3").args(["-m", "venv"]).arg(dir)).ok();
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
        let _ = run(Command::new(dir.join("bin/python")).args(pip).arg(&requirements)).ok();
    });
    dir.join("bin/python")
}

/// buf: `MEZITE_BUF`, or the one of npm.
#[must_use]
pub fn buf() -> PathBuf {
    if let Some(buf) = given("MEZITE_BUF") {
        return buf;
    }
    npm("buf", "@bufbuild/buf", BUF).join("node_modules/.bin/buf")
}

/// The folder in which npm has installed `oidc-provider`: `MEZITE_OIDC_PROVIDER`, or one of the cache.
#[must_use]
pub fn oidc_provider() -> PathBuf {
    given("MEZITE_OIDC_PROVIDER").unwrap_or_else(|| npm("oidc-provider", "oidc-provider", OIDC_PROVIDER))
}

/// A folder in which npm has installed a package.
fn npm(name: &str, package: &str, version: &str) -> PathBuf {
    cached(&format!("{name}-{version}"), |dir| {
        fs::create_dir_all(dir).unwrap();
        let npm = ["install", "--no-audit", "--no-fund", "--no-save", "--prefix"];
        let _ = run(Command::new("npm").args(npm).arg(dir).arg(format!("{package}@{version}"))).ok();
    })
}

/// Environment in which a program's clock goes ahead by what the file `offset` says, such as `+90s`; its monotonic
/// clock goes on as it is.
///
/// # Panics
/// When Debian's package `faketime` is not installed.
#[must_use]
pub fn shifted_clock(offset: &Path) -> Vec<(String, String)> {
    let folders = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib"];
    let library = folders.iter().map(|folder| Path::new(folder).join(FAKETIME)).find(|path| path.exists());
    let library = library.expect("libfaketime must be installed: run `apt-get install faketime`");
    [
        ("LD_PRELOAD", library.to_str().unwrap()),
        ("FAKETIME_TIMESTAMP_FILE", offset.to_str().unwrap()),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("DONT_FAKE_MONOTONIC", "1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

fn given(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// A folder of the user's cache, made by `install` if it is not there whole. Tests that want it at the same time wait.
fn cached(name: &str, install: impl FnOnce(&Path)) -> PathBuf {
    let cache = given("XDG_CACHE_HOME").unwrap_or_else(|| env::home_dir().unwrap().join(".cache"));
    let cache = cache.join("mezite/tools");
    fs::create_dir_all(&cache).unwrap();
    let (dir, complete) = (cache.join(name), cache.join(format!("{name}.complete")));
    let lock = File::create(cache.join(format!("{name}.lock"))).unwrap();
    lock.lock().unwrap();
    if !complete.exists() {
        if dir.exists() {
            fs::remove_dir_all(&dir).unwrap();
        }
        install(&dir);
        File::create(&complete).unwrap();
    }
    dir
}
