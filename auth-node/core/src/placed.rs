//! A place among rows, and the secret by which it is known who put there what is there: `<place>.<secret>`, the place in
//! hexadecimal digits. A slot has so many places, and whatever is new takes a random one of those: so there are only so many rows,
//! however often something is begun.

/// Networks, and users, are spread over so many slots each.
pub(crate) const SLOTS: u64 = 512;
/// Places of a slot.
pub(crate) const PLACES: u64 = 256;

/// Longest text that is read, in bytes.
const MAX_TEXT: usize = 256;

/// One of a slot's places.
pub(crate) fn place(slot: u64, random: u64) -> u64 {
    slot * PLACES + random % PLACES
}

/// Writes one.
pub(crate) fn text(place: u64, secret: &str) -> String {
    format!("{place:x}.{secret}")
}

/// Reads one, only as [`text`] writes it. `None`: it is none.
pub(crate) fn parse(written: &str) -> Option<(u64, &str)> {
    let (place, secret) = written.split_once('.').filter(|_| written.len() <= MAX_TEXT)?;
    let place = u64::from_str_radix(place, 16).ok()?;
    (text(place, secret) == written).then_some((place, secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_form_of_each() {
        for (place, secret) in [(0, ""), (31, "c2VjcmV0"), (u64::MAX, "a.b")] {
            assert_eq!(parse(&text(place, secret)), Some((place, secret)));
        }
        let long = format!("1.{}", "x".repeat(255));
        for bad in ["", "1f", ".x", "+1f.x", "01f.x", "1F.x", "-1.x", "1 .x", "10000000000000000.x", &long] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
