//! Identifiers: UUIDs, parsed once, so that no object key is ever built from raw input.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::FormatError;

/// Where the hyphens of a UUID's text stand.
const HYPHENS: [usize; 4] = [8, 13, 18, 23];

fn parse(text: &str) -> Result<[u8; 16], FormatError> {
    let bytes = text.as_bytes();
    if bytes.len() != 36 || HYPHENS.iter().any(|&at| bytes.get(at) != Some(&b'-')) {
        return Err(FormatError::BadId);
    }
    let mut digits =
        bytes.iter().enumerate().filter(|(at, _)| !HYPHENS.contains(at)).map(|(_, &digit)| digit);
    let mut id = [0; 16];
    for byte in &mut id {
        let (Some(high), Some(low)) = (digits.next(), digits.next()) else { return Err(FormatError::BadId) };
        *byte = nibble(high)? << 4 | nibble(low)?;
    }
    Ok(id)
}

/// Lower case alone: one id has one spelling, so one key.
fn nibble(digit: u8) -> Result<u8, FormatError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(FormatError::BadId),
    }
}

fn write(id: &[u8; 16], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (at, byte) in id.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            f.write_str("-")?;
        }
        write!(f, "{byte:02x}")?;
    }
    Ok(())
}

macro_rules! uuid_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 16]);

        impl $name {
            /// From its sixteen bytes.
            #[must_use]
            pub fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// Its sixteen bytes, as a UUID's text orders them.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = FormatError;

            fn from_str(text: &str) -> Result<Self, FormatError> {
                parse(text).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write(&self.0, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

uuid_type! {
    /// Names a recording: a UUID that the agent chose.
    RecordingId
}

uuid_type! {
    /// Names an agent or an ingest: the UUID that the cluster gave it.
    AgentId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_spelling_alone_is_an_id() {
        let text = "0b5c2f6e-6a1d-4c0e-9c55-1f2e3d4c5b6a";
        let id: RecordingId = text.parse().unwrap();
        assert_eq!(id.to_string(), text);
        for bad in [
            "",
            "0b5c2f6e6a1d4c0e9c551f2e3d4c5b6a",
            "0B5C2F6E-6A1D-4C0E-9C55-1F2E3D4C5B6A",
            "0b5c2f6e-6a1d-4c0e-9c55-1f2e3d4c5b6a ",
            "{0b5c2f6e-6a1d-4c0e-9c55-1f2e3d4c5b6a}",
            "0b5c2f6e/6a1d-4c0e-9c55-1f2e3d4c5b6a",
            "../../../../../../../../../../../etc",
            "0b5c2f6e-6a1d-4c0e-9c55-1f2e3d4c5b6\u{e9}",
            "0b5c2f6-e6a1d-4c0e-9c55-1f2e3d4c5b6a",
        ] {
            assert_eq!(bad.parse::<RecordingId>(), Err(FormatError::BadId), "{bad:?}");
        }
    }
}
