//! Arguments that several commands take: durations, times, labels, traits.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Seconds.
const DAY: u64 = 86_400;

/// `8h`, `1h 30m`, `45s`; above zero.
pub(crate) fn human_duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be more than zero".into()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; write it like `8h` or `1h 30m`")),
    }
}

/// As [`human_duration`] reads it, in days and less: how long a month or a year is, nobody agrees on.
pub(crate) fn shown_duration(duration: Duration) -> String {
    let days = duration.as_secs() / DAY;
    let rest = duration - Duration::from_secs(days * DAY);
    match (days, rest) {
        (0, rest) => humantime::format_duration(rest).to_string(),
        (days, Duration::ZERO) => format!("{days}d"),
        (days, rest) => format!("{days}d {}", humantime::format_duration(rest)),
    }
}

/// `4G`, `500M`, `1048576`: bytes, with units of 1024; above zero.
pub(crate) fn byte_count(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().last() {
        Some((end, 'K')) => (text.get(..end), 10),
        Some((end, 'M')) => (text.get(..end), 20),
        Some((end, 'G')) => (text.get(..end), 30),
        Some((end, 'T')) => (text.get(..end), 40),
        _ => (Some(text), 0),
    };
    let count = digits.and_then(|digits| digits.parse::<u64>().ok()).filter(|count| *count > 0);
    let bytes = count.and_then(|count| count.checked_mul(1 << shift));
    bytes.ok_or_else(|| "write it like `500M` or `4G`".into())
}

/// `2026-11-24T09:00:00Z`.
pub(crate) fn rfc3339(text: &str) -> Result<SystemTime, String> {
    humantime::parse_rfc3339(text).map_err(|error| format!("{error}; write it like `2026-11-24T09:00:00Z`"))
}

/// `key=value`.
pub(crate) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as key=value".into()),
    }
}

/// A map of `key=value` pairs; a key given twice is a mistake.
pub(crate) fn label_map(pairs: &[(String, String)]) -> anyhow::Result<BTreeMap<String, String>> {
    let mut map = BTreeMap::new();
    for (key, value) in pairs {
        if map.insert(key.clone(), value.clone()).is_some() {
            return Err(crate::exit::Usage(format!("label `{key}` is given twice")).into());
        }
    }
    Ok(map)
}

/// `8h`, in a file: what [`human_duration`] reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Human(pub(crate) Duration);

impl Human {
    /// What the cluster says; `None` for none, and for one that is negative.
    pub(crate) fn of(duration: Option<prost_types::Duration>) -> Option<Self> {
        duration.and_then(|duration| Duration::try_from(duration).ok()).map(Self)
    }
}

impl Serialize for Human {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&shown_duration(self.0))
    }
}

impl<'de> Deserialize<'de> for Human {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        human_duration(&String::deserialize(deserializer)?).map(Self).map_err(D::Error::custom)
    }
}

/// To a protobuf duration.
pub(crate) fn proto_duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_1024() {
        for (text, bytes) in
            [("1", 1), ("2K", 2 << 10), ("500M", 500 << 20), ("4G", 4 << 30), ("1T", 1 << 40)]
        {
            assert_eq!(byte_count(text), Ok(bytes), "{text}");
        }
        for text in ["", "0", "G", "-1", "1.5G", "4GB", "4g", "99999999999T"] {
            assert!(byte_count(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_human() {
        assert_eq!(human_duration("1h 30m").unwrap(), Duration::from_secs(5400));
        for wrong in ["", "0s", "-1h", "8", "soon"] {
            assert!(human_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_are_shown_in_days_and_less_and_can_be_read_again() {
        for text in ["180d", "1d", "400d 19h 12m", "23h 59m", "45s", "1d 1ms"] {
            let duration = human_duration(text).unwrap();
            assert_eq!(shown_duration(duration), text);
        }
        assert_eq!(shown_duration(human_duration("36h").unwrap()), "1d 12h");
    }

    #[test]
    fn labels_are_unique() {
        assert_eq!(key_value("env=a=b").unwrap(), ("env".into(), "a=b".into()));
        assert!(key_value("env").is_err() && key_value("=x").is_err());
        let twice = [("a".to_owned(), "1".to_owned()), ("a".to_owned(), "2".to_owned())];
        assert!(label_map(&twice).is_err());
    }
}
