//! Where a user's profiles are, and which of them a command works with. What is in one is `profile`'s business.
//!
//! The profile `default` is in the home itself, where older releases had their only one; the others are under `profiles`.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    exit::Usage,
    files::{PRIVATE, create_dir, write_atomic},
    profile::{Home, LOCK, PROFILE},
};

/// The profile that is meant where nothing says another.
pub(crate) const DEFAULT: &str = "default";
/// Says which profile is meant where no option does.
pub(crate) const PROFILE_VARIABLE: &str = "MEZITE_PROFILE";

const PROFILES: &str = "profiles";
/// File with the name of the profile that is in use.
const CURRENT: &str = "current";
/// Longest name of a profile, in bytes.
const MAX_NAME: usize = 64;

/// The folder with all profiles of a user.
#[derive(Debug, Clone)]
pub(crate) struct Homes {
    root: PathBuf,
    /// Whether it is where it is without being told.
    usual: bool,
}

impl Homes {
    /// The given folder, or `mezite` in the user's folder for configuration.
    ///
    /// # Errors
    /// When none is given, and nobody knows where the user's home is.
    pub(crate) fn new(dir: Option<PathBuf>) -> Result<Self> {
        if let Some(root) = dir {
            return Ok(Self { root, usual: false });
        }
        let home = env::home_dir().filter(|home| !home.as_os_str().is_empty());
        let home = home.context("there is no home folder: give --home")?;
        let config = env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
        Ok(Self { root: usual(&home, config), usual: true })
    }

    /// The folder, where it is not the usual one.
    pub(crate) fn unusual(&self) -> Option<&Path> {
        (!self.usual).then_some(&*self.root)
    }

    /// The profile of this name, or the one that is in use. It need not be there yet.
    ///
    /// # Errors
    /// When the name cannot be one, or what is in use cannot be told.
    pub(crate) fn open(&self, name: Option<&str>) -> Result<Home> {
        let name = match name.filter(|name| !name.is_empty()) {
            Some(name) => checked(name)?,
            None => self.current()?,
        };
        Ok(self.home(name))
    }

    /// Name of the profile that is in use.
    ///
    /// # Errors
    /// When the file that says so cannot be read.
    pub(crate) fn current(&self) -> Result<String> {
        let path = self.root.join(CURRENT);
        match fs::read_to_string(&path) {
            Ok(name) => checked(name.trim()).with_context(|| format!("{}: remove it", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(DEFAULT.to_owned()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Has this profile be the one in use.
    ///
    /// # Errors
    /// When that cannot be written.
    pub(crate) fn set_current(&self, name: &str) -> Result<()> {
        create_dir(&self.root)?;
        write_atomic(&self.root.join(CURRENT), format!("{name}\n").as_bytes(), PRIVATE)
    }

    /// All profiles that there are, by their names.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub(crate) fn all(&self) -> Result<Vec<Home>> {
        let mut names = vec![DEFAULT.to_owned()];
        let path = self.root.join(PROFILES);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries.collect::<Result<Vec<_>, _>>(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        };
        for entry in entries.with_context(|| format!("cannot read {}", path.display()))? {
            names.extend(entry.file_name().into_string().ok().filter(|name| checked(name).is_ok()));
        }
        names.sort();
        Ok(names.into_iter().map(|name| self.home(name)).filter(Home::exists).collect())
    }

    fn home(&self, name: String) -> Home {
        match name.as_str() {
            DEFAULT => Home::new(self.root.clone(), name),
            _ => Home::new(self.root.join(PROFILES).join(&name), name),
        }
    }
}

/// A name that is a file's name and nothing else, everywhere.
fn checked(name: &str) -> Result<String> {
    let usable = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let is_name = name.len() <= MAX_NAME
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(usable);
    match is_name {
        true => Ok(name.to_owned()),
        false => {
            let what = "it takes letters, digits and ._-, and begins with a letter or digit";
            Err(Usage(format!("`{name}` cannot be the name of a profile: {what}")).into())
        }
    }
}

/// Where profiles are, unless somebody says otherwise (XDG Base Directory Specification): the profile that an older release kept
/// in `~/.mezite` is moved there. Where it cannot be moved, it is used where it is.
fn usual(home: &Path, config: Option<PathBuf>) -> PathBuf {
    let config = config.filter(|path| path.is_absolute()).unwrap_or_else(|| home.join(".config"));
    let (older, root) = (home.join(".mezite"), config.join("mezite"));
    let (from, to) = (older.join(PROFILE), root.join(PROFILE));
    if !from.exists() || to.exists() {
        return root;
    }
    let moved = create_dir(&root).is_ok() && fs::rename(&from, &to).is_ok();
    if moved {
        // What else somebody keeps there stays.
        let _ = fs::remove_file(older.join(LOCK)).and_then(|()| fs::remove_dir(&older));
    }
    // Another process may have been first.
    if moved || to.exists() { root } else { older }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(dir: &Path) {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join(PROFILE), "{}").unwrap();
    }

    #[test]
    fn what_an_older_release_left_is_moved_once() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path();
        let (older, newer) = (home.join(".mezite"), home.join(".config/mezite"));
        assert_eq!(usual(home, None), newer);
        assert!(!newer.exists(), "nothing is made before there is something to keep");
        profile(&older);
        fs::write(older.join(LOCK), "").unwrap();
        assert_eq!(usual(home, None), newer);
        assert!(newer.join(PROFILE).exists() && !older.exists());
        // What is there already is not overwritten.
        fs::write(newer.join(PROFILE), "new").unwrap();
        profile(&older);
        fs::write(older.join("key"), "").unwrap();
        assert_eq!(usual(home, None), newer);
        assert_eq!(fs::read_to_string(newer.join(PROFILE)).unwrap(), "new");
        assert!(older.join("key").exists());
    }

    #[test]
    fn what_cannot_be_moved_is_used_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        profile(&dir.path().join(".mezite"));
        fs::write(dir.path().join(".config"), "no folder").unwrap();
        assert_eq!(usual(dir.path(), None), dir.path().join(".mezite"));
    }

    #[test]
    fn the_folder_for_configuration_is_where_the_user_says() {
        let home = Path::new("/home/alice");
        assert_eq!(usual(home, Some("/etc/alice".into())), Path::new("/etc/alice/mezite"));
        for nothing in ["", "relative"] {
            assert_eq!(usual(home, Some(nothing.into())), Path::new("/home/alice/.config/mezite"));
        }
    }

    #[test]
    fn a_profile_is_chosen_by_name_or_is_the_one_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let homes = Homes::new(Some(dir.path().join("home"))).unwrap();
        let name = |homes: &Homes, said: Option<&str>| homes.open(said).map(|home| home.name().to_owned());
        assert_eq!(name(&homes, None).unwrap(), DEFAULT);
        assert_eq!(name(&homes, Some("")).unwrap(), DEFAULT);
        homes.set_current("work").unwrap();
        assert_eq!(name(&homes, None).unwrap(), "work");
        assert_eq!(name(&homes, Some(DEFAULT)).unwrap(), DEFAULT);
        for wrong in ["..", ".hidden", "a/b", "-a", "ä", "a b", &"a".repeat(65)] {
            assert!(name(&homes, Some(wrong)).unwrap_err().is::<Usage>(), "{wrong}");
        }
        fs::write(dir.path().join("home/current"), "../elsewhere\n").unwrap();
        assert!(format!("{:#}", name(&homes, None).unwrap_err()).contains("current: remove it"));
    }

    #[test]
    fn the_profiles_that_there_are_can_be_listed() {
        let dir = tempfile::tempdir().unwrap();
        let homes = Homes::new(Some(dir.path().to_owned())).unwrap();
        let names = || homes.all().unwrap().iter().map(|home| home.name().to_owned()).collect::<Vec<_>>();
        assert!(names().is_empty());
        profile(&dir.path().join("profiles/work"));
        profile(&dir.path().join("profiles/a"));
        fs::create_dir(dir.path().join("profiles/empty")).unwrap();
        assert_eq!(names(), ["a", "work"]);
        profile(dir.path());
        assert_eq!(names(), ["a", "default", "work"]);
    }
}
