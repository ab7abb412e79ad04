//! OpenSSH key revocation lists (PROTOCOL.krl of OpenSSH): the one form, serial numbers of certificates of any CA.

/// First bytes of a list.
const MAGIC: &[u8; 8] = b"SSHKRL\n\0";
/// Version of the format.
const FORMAT: u32 = 1;
/// Section of certificates of one CA, or, with an empty key, of any.
const SECTION_CERTIFICATES: u8 = 1;
/// Section inside it: a list of serial numbers.
const SECTION_SERIALS: u8 = 0x20;

/// A list that revokes the certificates with these serial numbers, whoever signed them. Serial number 0 stands for none
/// in OpenSSH, and cannot be revoked. `version` tells which of two lists is newer, `made_at` when it was made (Unix
/// seconds); OpenSSH shows them and decides nothing by them.
pub fn revocation_list(serials: &[u64], version: u64, made_at: u64, comment: &str) -> Vec<u8> {
    let mut list = MAGIC.to_vec();
    list.extend(FORMAT.to_be_bytes());
    list.extend(version.to_be_bytes());
    list.extend(made_at.to_be_bytes());
    // Flags, of which there are none.
    list.extend(0_u64.to_be_bytes());
    string(&mut list, &[]);
    string(&mut list, comment.as_bytes());
    if serials.is_empty() {
        return list;
    }
    let numbers: Vec<u8> = serials.iter().flat_map(|serial| serial.to_be_bytes()).collect();
    let mut certificates = Vec::with_capacity(numbers.len() + 16);
    // No CA key, and what is reserved.
    string(&mut certificates, &[]);
    string(&mut certificates, &[]);
    certificates.push(SECTION_SERIALS);
    string(&mut certificates, &numbers);
    list.push(SECTION_CERTIFICATES);
    string(&mut list, &certificates);
    list
}

/// Appends a string as SSH encodes it (RFC 4251, section 5).
fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_list() {
        let hex = |list: Vec<u8>| hex::encode(list);
        let head =
            "5353484b524c0a00000000010000000000000007000000000000000900000000000000000000000000000001 63";
        let head = head.replace(' ', "");
        assert_eq!(hex(revocation_list(&[], 7, 9, "c")), head);
        let section = "01 0000001d 00000000 00000000 20 00000010 0000000000000001 00000000000000ff";
        let expected = format!("{head}{}", section.replace(' ', ""));
        assert_eq!(hex(revocation_list(&[1, 255], 7, 9, "c")), expected);
    }
}
