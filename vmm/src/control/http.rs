//! As much of HTTP/1.1 as the control socket needs: requests with Content-Length, keep-alive.
//!
//! Bytes come from whoever may connect: limits on everything, and garbage is an answer, not a panic.

use thiserror::Error;

/// Longest request line and headers, bytes.
pub const HEAD_MAX: usize = 16 << 10;
/// Longest body, bytes.
pub const BODY_MAX: usize = 4 << 20;
const HEADERS_MAX: usize = 32;

/// A request that cannot be served; the connection is closed after the answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HttpError {
    /// Not HTTP.
    #[error("not an HTTP request: {0}")]
    Malformed(String),
    /// Head too long.
    #[error("the request's head is longer than {HEAD_MAX} bytes")]
    HeadTooLong,
    /// Body too long.
    #[error("the request's body is longer than {BODY_MAX} bytes")]
    BodyTooLong,
    /// A body without Content-Length.
    #[error("send Content-Length: chunked bodies are not understood")]
    LengthRequired,
}

impl HttpError {
    /// Status code of the answer.
    pub const fn status(&self) -> u16 {
        match self {
            HttpError::Malformed(_) => 400,
            HttpError::HeadTooLong => 431,
            HttpError::BodyTooLong => 413,
            HttpError::LengthRequired => 411,
        }
    }
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Method, as sent.
    pub method: String,
    /// Path without the query.
    pub path: String,
    /// Body.
    pub body: Vec<u8>,
    /// Whether the connection stays open.
    pub keep_alive: bool,
}

/// Reads one request from the beginning of `bytes`: it and the bytes it used, or `None` if more
/// bytes are needed.
///
/// # Errors
/// [`HttpError`].
pub fn parse(bytes: &[u8]) -> Result<Option<(Request, usize)>, HttpError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let head_len = match request.parse(bytes) {
        Ok(httparse::Status::Complete(len)) if len <= HEAD_MAX => len,
        Ok(httparse::Status::Partial) if bytes.len() <= HEAD_MAX => return Ok(None),
        Ok(_) => return Err(HttpError::HeadTooLong),
        Err(error) => return Err(HttpError::Malformed(error.to_string())),
    };
    let mut body_len = 0;
    let mut keep_alive = request.version == Some(1);
    for header in request.headers.iter() {
        let value = std::str::from_utf8(header.value).unwrap_or("").trim();
        if header.name.eq_ignore_ascii_case("content-length") {
            if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(HttpError::Malformed(format!("Content-Length {value:?} is not a number")));
            }
            body_len =
                value.parse::<usize>().ok().filter(|len| *len <= BODY_MAX).ok_or(HttpError::BodyTooLong)?;
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(HttpError::LengthRequired);
        } else if header.name.eq_ignore_ascii_case("connection") {
            keep_alive = !value.eq_ignore_ascii_case("close");
        }
    }
    let end = head_len + body_len;
    let Some(body) = bytes.get(head_len..end) else { return Ok(None) };
    let target = request.path.unwrap_or("/");
    let request = Request {
        method: request.method.unwrap_or("").to_owned(),
        path: target.split('?').next().unwrap_or(target).to_owned(),
        body: body.to_vec(),
        keep_alive,
    };
    Ok(Some((request, end)))
}

/// Head of an answer.
pub fn response_head(status: u16, content_type: &str, len: usize, keep_alive: bool) -> String {
    let reason = match status {
        200 => "OK",
        202 => "Accepted",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        _ => "Internal Server Error",
    };
    let connection = if keep_alive { "keep-alive" } else { "close" };
    format!(
        "HTTP/1.1 {status} {reason}\r\nServer: memvisor\r\nContent-Type: {content_type}\r\n\
         Content-Length: {len}\r\nConnection: {connection}\r\n\r\n"
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_is_read_when_it_is_complete() {
        let bytes = b"POST /vm/translate?x=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbodyGET ";
        let end = bytes.len() - 4;
        for cut in 0..end {
            assert_eq!(parse(&bytes[..cut]).expect("no error yet"), None, "{cut} bytes");
        }
        let (request, used) = parse(bytes).expect("good").expect("complete");
        assert_eq!(used, end);
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/vm/translate"));
        assert_eq!((request.body.as_slice(), request.keep_alive), (&b"body"[..], true));
    }

    #[test]
    fn keep_alive_follows_version_and_header() {
        let keep = |text: &str| parse(text.as_bytes()).expect("good").expect("complete").0.keep_alive;
        assert!(keep("GET / HTTP/1.1\r\n\r\n"));
        assert!(!keep("GET / HTTP/1.0\r\n\r\n"));
        assert!(!keep("GET / HTTP/1.1\r\nconnection: Close\r\n\r\n"));
    }

    #[test]
    fn limits_and_oddities_have_their_status() {
        let status = |text: &str| parse(text.as_bytes()).expect_err("refused").status();
        assert_eq!(status("\x16\x03\x01 TLS\r\n\r\n"), 400);
        assert_eq!(status("GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"), 400);
        assert_eq!(status("GET / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n"), 413);
        assert_eq!(status("GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"), 411);
        assert_eq!(status(&format!("GET /{} HTTP/1.1\r\n", "x".repeat(HEAD_MAX))), 431);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn damaged_requests_never_panic_nor_use_more_than_they_have(
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6)
        ) {
            let mut bytes = b"PUT /vm/pause HTTP/1.1\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}".to_vec();
            for (at, byte) in edits {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Ok(Some((_, used))) = parse(&bytes) {
                prop_assert!(used <= bytes.len());
            }
        }
    }
}
