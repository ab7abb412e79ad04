//! Configuration: one TOML file, with overrides by one rule.
//!
//! A field `a.b` of the file is also the environment variable `PREFIX__A__B` and the flag `--set a.b=value`; the flag
//! wins over the environment, and that over the file. An override's value is read as TOML, or taken as text where it
//! is none. Unknown fields are refused wherever they come from. Which fields there are is each program's own.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use toml::{Table, Value};

use crate::{logging::LogConfig, traces::TracesConfig};

/// Most of anything that is counted.
const MAX_COUNT: usize = 1_000_000;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {cause}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// Not TOML, an unknown field, or a value of the wrong type.
    #[error("{0}")]
    Parse(String),
    /// An override that names no field.
    #[error("override {0:?} is not of the form field=value")]
    Override(String),
    /// A value out of its bounds.
    #[error("{field}: {reason}")]
    Value {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl ConfigError {
    /// Of a value out of its bounds.
    #[must_use]
    pub fn value(field: &'static str, reason: &str) -> Self {
        Self::Value { field, reason: reason.to_owned() }
    }
}

/// A program's configuration: a struct with a field for each setting, that refuses unknown ones. Two of them are `log`,
/// a [`LogConfig`], and `traces`, a [`TracesConfig`].
pub trait Settings: Serialize + DeserializeOwned {
    /// Environment variables with this prefix override fields.
    const ENV_PREFIX: &'static str;

    /// The field `log`.
    fn log(&self) -> &LogConfig;

    /// Its traces.
    fn traces(&self) -> &TracesConfig;

    /// Whether every value is within its bounds.
    ///
    /// # Errors
    /// [`ConfigError::Value`] when one is not.
    fn check(&self) -> Result<(), ConfigError>;

    /// Reads the file, applies the overrides and checks the result. `environment` is name and value of each
    /// variable; `flags` is each `--set`.
    ///
    /// # Errors
    /// When the file cannot be read or the result is not a valid configuration.
    fn load(
        path: &Path,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: &[String],
    ) -> Result<Self, ConfigError> {
        let text =
            fs::read_to_string(path).map_err(|cause| ConfigError::Read { path: path.to_owned(), cause })?;
        Self::parse(&text, environment, flags)
    }

    /// As [`Settings::load`], from the file's text.
    ///
    /// # Errors
    /// When the result is not a valid configuration.
    fn parse(
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: &[String],
    ) -> Result<Self, ConfigError> {
        let mut table: Table = text.parse().map_err(|error| ConfigError::Parse(format!("{error}")))?;
        let mut variables: Vec<_> = environment
            .into_iter()
            .filter_map(|(name, value)| {
                let path = name.strip_prefix(Self::ENV_PREFIX)?.to_lowercase();
                Some((path.split("__").map(str::to_owned).collect::<Vec<_>>(), value))
            })
            .collect();
        variables.sort();
        for (path, value) in variables {
            set(&mut table, &path, &value)?;
        }
        for flag in flags {
            let (path, value) = flag.split_once('=').ok_or_else(|| ConfigError::Override(flag.clone()))?;
            set(&mut table, &path.split('.').map(str::to_owned).collect::<Vec<_>>(), value)?;
        }
        let config: Self = table.try_into().map_err(|error| ConfigError::Parse(format!("{error}")))?;
        config.traces().check()?;
        config.check()?;
        Ok(config)
    }

    /// The configuration as TOML, defaults included. There is no secret in it.
    ///
    /// # Errors
    /// When it cannot be written as TOML.
    fn print(&self) -> Result<String, ConfigError> {
        toml::to_string_pretty(self).map_err(|error| ConfigError::Parse(format!("{error}")))
    }
}

fn set(table: &mut Table, path: &[String], text: &str) -> Result<(), ConfigError> {
    let refused = || ConfigError::Override(path.join("."));
    let (last, parents) = path.split_last().filter(|(last, _)| !last.is_empty()).ok_or_else(refused)?;
    let mut table = table;
    for parent in parents {
        let entry = table.entry(parent.clone()).or_insert_with(|| Value::Table(Table::new()));
        table = entry.as_table_mut().ok_or_else(refused)?;
    }
    let parsed = format!("value = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
    table.insert(last.clone(), parsed.unwrap_or_else(|| Value::String(text.to_owned())));
    Ok(())
}

/// For [`Settings::check`]: each count, by its field, is 1 to 1,000,000.
///
/// # Errors
/// The first one that is not.
pub fn check_counts(counts: &[(&'static str, usize)]) -> Result<(), ConfigError> {
    match counts.iter().find(|(_, count)| !(1..=MAX_COUNT).contains(count)) {
        Some((field, _)) => Err(ConfigError::value(field, "must be 1 to 1000000")),
        None => Ok(()),
    }
}

/// For [`Settings::check`]: each duration, by its field, is 1 ms or longer.
///
/// # Errors
/// The first one that is not.
pub fn check_durations(durations: &[(&'static str, Duration)]) -> Result<(), ConfigError> {
    match durations.iter().find(|(_, duration)| *duration < Duration::from_millis(1)) {
        Some((field, _)) => Err(ConfigError::value(field, "must be at least 1 ms")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::SocketAddr};

    use serde::Deserialize;

    use super::*;
    use crate::logging::LogFormat;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Example {
        listen: SocketAddr,
        names: Vec<String>,
        #[serde(default)]
        log: LogConfig,
        #[serde(default)]
        traces: TracesConfig,
        #[serde(default)]
        limits: BTreeMap<String, usize>,
    }

    impl Settings for Example {
        const ENV_PREFIX: &'static str = "EXAMPLE__";

        fn log(&self) -> &LogConfig {
            &self.log
        }

        fn traces(&self) -> &TracesConfig {
            &self.traces
        }

        fn check(&self) -> Result<(), ConfigError> {
            check_counts(&[("names", self.names.len())])
        }
    }

    const LEAST: &str = "listen = '127.0.0.1:1'\nnames = ['a']\n";

    fn parse(text: &str, environment: &[(&str, &str)], flags: &[&str]) -> Result<Example, ConfigError> {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Example::parse(text, environment, &flags.iter().map(|flag| (*flag).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_printed_is_read_back() {
        let config = parse(LEAST, &[], &[]).unwrap();
        assert_eq!(parse(&config.print().unwrap(), &[], &[]).unwrap(), config);
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let text = format!("{LEAST}[limits]\na = 1\nb = 1\nc = 1\n");
        let environment = [
            ("EXAMPLE__LIMITS__A", "2"),
            ("EXAMPLE__LIMITS__B", "2"),
            ("EXAMPLE__LISTEN", "127.0.0.1:2"),
            ("EXAMPLE__LOG__FORMAT", "json"),
            ("OTHER", "x"),
        ];
        let config = parse(&text, &environment, &["limits.a=3", "names=['b', 'c']"]).unwrap();
        let limits: Vec<_> = config.limits.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        assert_eq!(limits, [("a", 3), ("b", 2), ("c", 1)]);
        // A text needs no quotes.
        assert_eq!(config.listen.port(), 2);
        assert_eq!(config.names, ["b", "c"]);
        assert_eq!(config.log.format, LogFormat::Json);
    }

    #[test]
    fn traces_go_to_a_collector_without_tls() {
        let to = |endpoint: &str| parse(LEAST, &[], &[&format!("traces.endpoint='{endpoint}'")]);
        for good in ["http://127.0.0.1:4317", "http://collector.example:4317/"] {
            assert!(to(good).is_ok(), "{good}");
        }
        for bad in ["", "foo", "localhost:4317", "https://collector.example:4317", "http://"] {
            let error = to(bad).unwrap_err();
            assert!(error.to_string().starts_with("traces.endpoint: "), "{bad}: {error}");
        }
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        for flag in ["colour=green", "log.colour=1", "log.format=xml", "listen=nowhere", "names=1"] {
            assert!(matches!(parse(LEAST, &[], &[flag]), Err(ConfigError::Parse(_))), "{flag}");
        }
        for flag in ["listen.x=1", "=1", "x", "limits.=1"] {
            assert!(matches!(parse(LEAST, &[], &[flag]), Err(ConfigError::Override(_))), "{flag}");
        }
        assert!(parse(LEAST, &[("EXAMPLE__COLOUR", "1")], &[]).is_err());
        assert!(parse("listen =", &[], &[]).is_err());
        let error = parse(LEAST, &[], &["names=[]"]).unwrap_err();
        assert_eq!(error.to_string(), "names: must be 1 to 1000000");
        assert!(matches!(Example::load(Path::new("/nowhere"), [], &[]), Err(ConfigError::Read { .. })));
    }

    #[test]
    fn the_first_value_out_of_bounds_is_named() {
        assert!(check_counts(&[("a", 1), ("b", MAX_COUNT)]).is_ok());
        for wrong in [0, MAX_COUNT + 1] {
            let error = check_counts(&[("a", 1), ("b", wrong), ("c", wrong)]).unwrap_err();
            assert!(error.to_string().starts_with("b: "), "{error}");
        }
        let least = Duration::from_millis(1);
        assert!(check_durations(&[("a", least)]).is_ok());
        let error = check_durations(&[("a", least), ("b", least / 2)]).unwrap_err();
        assert_eq!(error.to_string(), "b: must be at least 1 ms");
    }
}
