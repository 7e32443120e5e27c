//! Names of record types and response codes, as the IANA registry "Domain Name System (DNS) Parameters" has them.

/// Types that can be asked for. Not OPT, TSIG, TKEY, which are no data, nor zone transfers.
const TYPES: &[(&str, u16)] = &[
    ("A", 1),
    ("NS", 2),
    ("MD", 3),
    ("MF", 4),
    ("CNAME", 5),
    ("SOA", 6),
    ("MB", 7),
    ("MG", 8),
    ("MR", 9),
    ("NULL", 10),
    ("WKS", 11),
    ("PTR", 12),
    ("HINFO", 13),
    ("MINFO", 14),
    ("MX", 15),
    ("TXT", 16),
    ("RP", 17),
    ("AFSDB", 18),
    ("X25", 19),
    ("ISDN", 20),
    ("RT", 21),
    ("NSAP", 22),
    ("NSAP-PTR", 23),
    ("SIG", 24),
    ("KEY", 25),
    ("PX", 26),
    ("GPOS", 27),
    ("AAAA", 28),
    ("LOC", 29),
    ("NXT", 30),
    ("EID", 31),
    ("NIMLOC", 32),
    ("SRV", 33),
    ("ATMA", 34),
    ("NAPTR", 35),
    ("KX", 36),
    ("CERT", 37),
    ("A6", 38),
    ("DNAME", 39),
    ("SINK", 40),
    ("APL", 42),
    ("DS", 43),
    ("SSHFP", 44),
    ("IPSECKEY", 45),
    ("RRSIG", 46),
    ("NSEC", 47),
    ("DNSKEY", 48),
    ("DHCID", 49),
    ("NSEC3", 50),
    ("NSEC3PARAM", 51),
    ("TLSA", 52),
    ("SMIMEA", 53),
    ("HIP", 55),
    ("NINFO", 56),
    ("RKEY", 57),
    ("TALINK", 58),
    ("CDS", 59),
    ("CDNSKEY", 60),
    ("OPENPGPKEY", 61),
    ("CSYNC", 62),
    ("ZONEMD", 63),
    ("SVCB", 64),
    ("HTTPS", 65),
    ("DSYNC", 66),
    ("SPF", 99),
    ("UINFO", 100),
    ("UID", 101),
    ("GID", 102),
    ("UNSPEC", 103),
    ("NID", 104),
    ("L32", 105),
    ("L64", 106),
    ("LP", 107),
    ("EUI48", 108),
    ("EUI64", 109),
    ("NXNAME", 128),
    ("MAILB", 253),
    ("MAILA", 254),
    ("ANY", 255),
    ("URI", 256),
    ("CAA", 257),
    ("AVC", 258),
    ("DOA", 259),
    ("AMTRELAY", 260),
    ("RESINFO", 261),
    ("WALLET", 262),
    ("CLA", 263),
    ("IPN", 264),
    ("TA", 32768),
    ("DLV", 32769),
];
const NOT_ASKED: &[(&str, u16)] = &[("OPT", 41), ("TKEY", 249), ("TSIG", 250), ("IXFR", 251), ("AXFR", 252)];
const RCODES: &[(&str, u16)] = &[
    ("NOERROR", 0),
    ("FORMERR", 1),
    ("SERVFAIL", 2),
    ("NXDOMAIN", 3),
    ("NOTIMP", 4),
    ("REFUSED", 5),
    ("YXDOMAIN", 6),
    ("YXRRSET", 7),
    ("NXRRSET", 8),
    ("NOTAUTH", 9),
    ("NOTZONE", 10),
    ("DSOTYPENI", 11),
    ("BADVERS", 16),
    ("BADKEY", 17),
    ("BADTIME", 18),
    ("BADMODE", 19),
    ("BADNAME", 20),
    ("BADALG", 21),
    ("BADTRUNC", 22),
    ("BADCOOKIE", 23),
];

/// The number of a record type: by name, `TYPE65` (RFC 3597) or `65`.
pub fn record_type_number(text: &str) -> Option<u16> {
    let upper = text.to_ascii_uppercase();
    let named = TYPES.iter().find(|(name, _)| *name == upper).map(|(_, n)| *n);
    named.or_else(|| upper.strip_prefix("TYPE").unwrap_or(&upper).parse().ok())
}

/// The name of a record type, or `TYPE65280`.
pub fn record_type_name(number: u16) -> String {
    TYPES.iter().find(|(_, n)| *n == number).map_or_else(|| format!("TYPE{number}"), |(name, _)| (*name).to_owned())
}

/// The name of a response code as dig prints it, or `RCODE4000`.
pub fn rcode_name(number: u16) -> String {
    RCODES.iter().find(|(_, n)| *n == number).map_or_else(|| format!("RCODE{number}"), |(name, _)| (*name).to_owned())
}

/// A record type as it is kept.
pub(super) fn canonical(text: &str) -> Result<String, String> {
    let upper = text.to_ascii_uppercase();
    if let Some((name, _)) = NOT_ASKED.iter().find(|(name, n)| *name == upper || record_type_number(text) == Some(*n)) {
        return Err(format!("{name} is no record type that can be probed"));
    }
    match record_type_number(text) {
        Some(number) if number != 0 => Ok(record_type_name(number)),
        _ => Err(format!("{text:?} is no record type (want a name such as A, AAAA, TXT, HTTPS, or a number)")),
    }
}

/// A response code as it is kept.
pub(super) fn rcode(text: &str) -> Result<String, String> {
    let upper = text.to_ascii_uppercase();
    let number = RCODES.iter().find(|(name, _)| *name == upper).map(|(_, n)| *n);
    let number = number.or_else(|| upper.strip_prefix("RCODE").unwrap_or(&upper).parse().ok().filter(|n| *n < 4_096));
    number.map(rcode_name).ok_or_else(|| format!("{text:?} is no response code (want NOERROR, NXDOMAIN, SERVFAIL, REFUSED... or a number)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_by_name_and_number() {
        for (text, name) in [("a", "A"), ("TYPE65", "HTTPS"), ("65", "HTTPS"), ("type65280", "TYPE65280"), ("Caa", "CAA"), ("257", "CAA")] {
            assert_eq!(canonical(text).as_deref(), Ok(name), "{text}");
        }
        for wrong in ["", "B", "0", "70000", "AXFR", "252", "TYPE41", "-1"] {
            assert!(canonical(wrong).is_err(), "{wrong}");
        }
        assert_eq!((rcode("nxdomain").as_deref(), rcode("23").as_deref(), rcode("RCODE3841").as_deref()), (Ok("NXDOMAIN"), Ok("BADCOOKIE"), Ok("RCODE3841")));
        assert!(rcode("NOPE").is_err() && rcode("4096").is_err());
    }
}
