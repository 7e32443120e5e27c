//! The answer's body: read within a bound, decoded within a bound.

use std::io::Read;

use bytes::Bytes;
use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use probity_proto::v1::{HttpCheck, Reason};

use super::super::bodies::{FREE_BYTES, Held};
use super::super::{Attempt, Failure};
use super::connect::failure;
use super::http3;

/// Codings one upon the other; more is a bomb in wrapping.
const CODINGS_MAX: usize = 3;
/// Room for what is decoded is asked for in pieces of that size.
const PIECE_BYTES: u64 = 64 << 10;
/// The largest window of zstd over HTTP (RFC 9659).
const ZSTD_WINDOW_MAX: u64 = 8 << 20;

/// An answer's body as it comes.
pub(super) enum Received {
    Tcp(Incoming),
    Quic(Box<http3::Body>),
}

pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

impl Received {
    /// Bytes that are announced; a HEAD's answer announces what it does not send.
    fn announced(&self, headers: &HeaderMap) -> Option<u64> {
        match self {
            Received::Tcp(body) if hyper::body::Body::is_end_stream(body) => None,
            Received::Tcp(_) => content_length(headers),
            Received::Quic(body) => body.announced(),
        }
    }

    /// The next piece; after the last one nothing.
    async fn chunk(&mut self) -> Option<Result<Bytes, Failure>> {
        match self {
            Received::Tcp(body) => loop {
                match body.frame().await? {
                    Ok(frame) => {
                        if let Ok(data) = frame.into_data() {
                            return Some(Ok(data));
                        }
                    }
                    Err(e) => return Some(Err(failure(&e))),
                }
            },
            Received::Quic(body) => body.chunk().await,
        }
    }

    /// Bytes that were announced and did not come, where nobody else looks.
    fn missing(&self) -> u64 {
        match self {
            Received::Tcp(_) => 0,
            Received::Quic(body) => body.missing(),
        }
    }
}

/// The body, and the room that it takes.
pub(super) async fn read(attempt: &mut Attempt<'_>, check: &HttpCheck, headers: &HeaderMap, mut body: Received) -> Result<(Bytes, Held), Failure> {
    let max = check.max_body_bytes;
    let too_large = || Failure::new(Reason::BodyTooLarge, format!("the body has more than {max} bytes"));
    if body.announced(headers).is_some_and(|n| n > max) {
        return Err(too_large());
    }
    let mut held = attempt.context.bodies.part();
    let mut first = Bytes::new();
    let mut rest: Vec<u8> = Vec::new();
    while let Some(data) = body.chunk().await {
        let data = data?;
        if (first.len() + rest.len() + data.len()) as u64 > max {
            return Err(too_large());
        }
        held.more(data.len())?;
        // Most bodies are of one piece: no copy.
        if first.is_empty() && rest.is_empty() {
            first = data;
        } else {
            rest.extend_from_slice(&std::mem::take(&mut first));
            rest.extend_from_slice(&data);
        }
    }
    if body.missing() > 0 {
        return Err(Failure::new(Reason::ConnectionClosed, format!("the body ends {} bytes before its content-length", body.missing())));
    }
    let bytes = if rest.is_empty() { first } else { Bytes::from(rest) };
    attempt.fact("http.response.body.size", bytes.len().to_string());
    decode(attempt, check, headers, bytes, held).await
}

async fn decode(attempt: &mut Attempt<'_>, check: &HttpCheck, headers: &HeaderMap, bytes: Bytes, mut held: Held) -> Result<(Bytes, Held), Failure> {
    let codings: Vec<String> = headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|c| c.trim().to_ascii_lowercase())
        .filter(|c| !c.is_empty() && c != "identity")
        .collect();
    if codings.is_empty() || check.compression.is_empty() || bytes.is_empty() {
        return Ok((bytes, held));
    }
    if codings.len() > CODINGS_MAX {
        return Err(Failure::new(Reason::ProtocolError, format!("{} codings one upon the other", codings.len())));
    }
    attempt.fact("http.response.encoding", codings.join(", "));
    let max = check.max_decompressed_bytes;
    let (decoded, held) = match decoded_here(&codings, &bytes, max) {
        Some(decoded) => {
            let decoded = decoded?;
            held.none();
            held.more(decoded.len())?;
            (decoded, held)
        }
        None => {
            // A few bytes may take some milliseconds.
            let decoding = move || {
                let decoded = codings.iter().rev().try_fold(bytes, |bytes, coding| {
                    let decoded = one(coding, &bytes, max, &mut |more| held.more(more))?;
                    held.less(bytes.len());
                    Ok::<_, Failure>(decoded)
                })?;
                Ok::<_, Failure>((decoded, held))
            };
            attempt.work(decoding).await??
        }
    };
    attempt.fact("http.response.decoded.size", decoded.len().to_string());
    Ok((decoded, held))
}

/// What is small, and stays so, is decoded at once: it does not wait behind the large ones. No more are in hand than there are threads, so what
/// they take meanwhile needs no account. None, if it is large.
fn decoded_here(codings: &[String], bytes: &Bytes, max: u64) -> Option<Result<Bytes, Failure>> {
    let most = max.min(FREE_BYTES);
    if bytes.len() as u64 > FREE_BYTES {
        return None;
    }
    let decoded = codings.iter().rev().try_fold(bytes.clone(), |bytes, coding| one(coding, &bytes, most, &mut |_| Ok(())));
    match decoded {
        Err(failure) if failure.reason == Reason::DecompressedTooLarge && most < max => None,
        decoded => Some(decoded),
    }
}

/// Tells `more` of each piece that it has decoded.
fn one(coding: &str, bytes: &[u8], max: u64, more: &mut dyn FnMut(usize) -> Result<(), Failure>) -> Result<Bytes, Failure> {
    let broken = |e: &dyn std::fmt::Display| Failure::new(Reason::ProtocolError, format!("the body is no {coding}: {e}"));
    let mut out = Vec::new();
    let mut take = |reader: &mut dyn Read| -> Result<(), Failure> {
        loop {
            let piece = (max + 1).saturating_sub(out.len() as u64).min(PIECE_BYTES);
            let read = reader.take(piece).read_to_end(&mut out).map_err(|e| broken(&e))?;
            if out.len() as u64 > max {
                return Err(Failure::new(Reason::DecompressedTooLarge, format!("{} bytes of {coding} become more than {max}", bytes.len())));
            }
            more(read)?;
            if (read as u64) < piece {
                return Ok(());
            }
        }
    };
    match coding {
        "gzip" | "x-gzip" => take(&mut MultiGzDecoder::new(bytes))?,
        // By RFC 9110 with zlib's head; some servers leave it out.
        "deflate" if is_zlib(bytes) => take(&mut ZlibDecoder::new(bytes))?,
        "deflate" => take(&mut DeflateDecoder::new(bytes))?,
        "br" => take(&mut brotli_decompressor::Decompressor::new(bytes, 4_096))?,
        "zstd" => {
            let mut rest = bytes;
            while !rest.is_empty() {
                if zstd_window(rest).is_some_and(|w| w > ZSTD_WINDOW_MAX) {
                    return Err(Failure::new(Reason::DecompressedTooLarge, format!("zstd asks for a window above {ZSTD_WINDOW_MAX} bytes (RFC 9659)")));
                }
                let mut decoder = ruzstd::decoding::StreamingDecoder::new(&mut rest).map_err(|e| broken(&e))?;
                take(&mut decoder)?;
            }
        }
        other => return Err(Failure::new(Reason::ProtocolError, format!("content-encoding {other:?} was not asked for"))),
    }
    Ok(Bytes::from(out))
}

fn is_zlib(bytes: &[u8]) -> bool {
    matches!(bytes, [first, second, ..] if first & 0x0f == 8 && (u16::from(*first) << 8 | u16::from(*second)) % 31 == 0)
}

/// The window that a frame asks for (RFC 8878, section 3.1.1.1).
fn zstd_window(frame: &[u8]) -> Option<u64> {
    let (magic, rest) = frame.split_at_checked(4)?;
    let (descriptor, rest) = rest.split_first()?;
    if magic != [0x28, 0xb5, 0x2f, 0xfd] {
        return None;
    }
    if descriptor & 0x20 == 0 {
        let window = rest.first()?;
        let base = 1u64 << (10 + (window >> 3));
        return Some(base + base / 8 * u64::from(window & 7));
    }
    // A single segment's window is its content.
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let digits = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    let size = rest.get(dictionary..dictionary + digits)?;
    Some(size.iter().rev().fold(0, |n, d| n << 8 | u64::from(*d)))
}

/// For tests/fuzz: the first byte says in what coding.
#[cfg(feature = "fuzz")]
pub(super) fn fuzz(bytes: &[u8]) {
    const MAX: u64 = 1 << 16;
    let Some((coding, rest)) = bytes.split_first() else { return };
    let coding = ["gzip", "deflate", "br", "zstd"][usize::from(*coding) % 4];
    if let Ok(decoded) = one(coding, rest, MAX, &mut |_| Ok(())) {
        assert!(decoded.len() as u64 <= MAX, "the bound holds");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_of_zstd() {
        let frame = |bytes: &[u8]| [&[0x28, 0xb5, 0x2f, 0xfd], bytes].concat();
        assert_eq!(zstd_window(&frame(&[0x00, 0x00])), Some(1 << 10));
        assert_eq!(zstd_window(&frame(&[0x00, 0xff])), Some((1 << 41) + (1 << 38) * 7));
        assert_eq!(zstd_window(&frame(&[0xe0, 0, 0, 0, 0, 1, 0, 0, 0])), Some(1 << 32));
        assert_eq!(zstd_window(b"\x28\xb5"), None);
    }

    #[test]
    fn damaged_bytes_are_no_panic() {
        let one = |coding: &str, bytes: &[u8], max: u64| super::one(coding, bytes, max, &mut |_| Ok(()));
        for coding in ["gzip", "deflate", "br", "zstd"] {
            for seed in 0..200u32 {
                let bytes: Vec<u8> = (0..64u32).map(|i| (seed.wrapping_mul(2_654_435_761).wrapping_add(i).wrapping_mul(40_503) >> 7) as u8).collect();
                let _ = one(coding, &bytes, 1 << 16);
                let _ = one(coding, &[&[0x28, 0xb5, 0x2f, 0xfd], bytes.as_slice()].concat(), 1 << 16);
                let _ = one(coding, &[&[0x1f, 0x8b, 8, 0], bytes.as_slice()].concat(), 1 << 16);
            }
        }
    }
}
