//! Web pages as clients: a browser sends requests for whatever page it shows, also to this machine.
//!
//! Without API keys the address is all that protects the API, and a page gets around it: by posting blindly, or by having
//! its own name point to this machine (DNS rebinding). So while there are no keys a request must name this machine
//! (`Host`), and must not come from another site's page (`Origin`). Pages of `[http] cors_origins` may send requests and read the
//! answers.
//!
//! Owns: which names and pages are ours. Must never: refuse a client that is no browser and calls us by address.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::error::ApiError;
use crate::keys::{Keys, Rule, is_probe};

/// Seconds for which a browser remembers what a page may do.
const MAX_AGE_S: &str = "600";
/// Stands for every page.
const ANY: &str = "*";
/// What a page may read of an answer besides its body.
const EXPOSED: &str = "x-request-id, request-id, retry-after, x-should-retry, x-max-tokens";
static PRIVATE_NETWORK: HeaderName =
    HeaderName::from_static("access-control-allow-private-network");

/// Lets through what may come from where it comes from, and tells browsers which pages may read the answer.
pub async fn guard(State(keys): State<Keys>, request: Request<Body>, next: Next) -> Response {
    let origin = request.headers().get(header::ORIGIN).cloned();
    let rule = keys.rule();
    let allowed = origin.as_ref().filter(|origin| is_allowed(&rule, origin)).cloned();
    let mut response = if allowed.is_some() && is_preflight(&request) {
        preflight(request.headers())
    } else if let Err(error) = check(&rule, &request, allowed.is_some()) {
        error.into_response()
    } else {
        next.run(request).await
    };
    if let Some(origin) = allowed {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    }
    response
}

/// Whether a page of `origin` may read answers.
fn is_allowed(rule: &Rule, origin: &HeaderValue) -> bool {
    let is =
        |known: &String| known == ANY || known.as_bytes().eq_ignore_ascii_case(origin.as_bytes());
    rule.cors_origins.iter().any(is)
}

/// Whether a browser asks what a page may do.
fn is_preflight(request: &Request<Body>) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

fn preflight(asked: &HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    let methods = HeaderValue::from_static("GET, POST, DELETE");
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE_S));
    headers.insert(PRIVATE_NETWORK.clone(), HeaderValue::from_static("true"));
    // What decides is the key; which headers come with it is all the same.
    if let Some(wanted) = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
    }
    response
}

/// Whether the request may come from a browser, where no key says that somebody meant it.
fn check(rule: &Rule, request: &Request<Body>, is_allowed: bool) -> Result<(), ApiError> {
    if !rule.keys.is_empty() || is_probe(request.uri().path()) {
        return Ok(());
    }
    let refuse =
        |message: String, code| Err(ApiError::new(StatusCode::FORBIDDEN, message).with_code(code));
    let host = match (request.headers().get(header::HOST), request.uri().host()) {
        (Some(host), _) => Some(String::from_utf8_lossy(host.as_bytes()).into_owned()),
        (None, Some(host)) => Some(host.to_owned()),
        // HTTP/1.0, which no browser speaks.
        (None, None) => None,
    };
    if let Some(host) = &host
        && !is_own(rule, name_of(host))
    {
        return refuse(
            format!(
                "the request is for the host \"{}\"; while this server has no API keys it answers to addresses, \
                 localhost and this machine's name; its operator can add others to [http] hosts, or set API keys",
                beginning(host)
            ),
            "unknown_host",
        );
    }
    let Some(origin) = request.headers().get(header::ORIGIN).filter(|_| !is_allowed) else {
        return Ok(());
    };
    let origin = String::from_utf8_lossy(origin.as_bytes());
    let page = origin.split_once("://").map(|(_, authority)| authority);
    if page.is_some() && page.map(str::to_owned) == host {
        return Ok(());
    }
    refuse(
        format!(
            "a web page of \"{}\" may not use this server; its operator can add it to [http] cors_origins",
            beginning(&origin)
        ),
        "foreign_origin",
    )
}

/// As much of a client's word as an answer repeats.
fn beginning(text: &str) -> String {
    text.chars().take(100).collect()
}

/// A host without its port, and an IPv6 address without its brackets.
fn name_of(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once(']').map_or(rest, |(address, _)| address);
    }
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

/// Whether this is a name of ours. An address is: nobody else can have a page of that name answer from here.
fn is_own(rule: &Rule, name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    name.parse::<std::net::IpAddr>().is_ok()
        || name == "localhost"
        || name.ends_with(".localhost")
        || rule.hosts.iter().any(|host| host.eq_ignore_ascii_case(&name))
}

/// Whether this can stand in `[http] hosts`: a name without a port.
pub fn is_host(name: &str) -> bool {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    (1..=253).contains(&name.len()) && name.bytes().all(is_name)
}

/// Whether this can stand in `[http] cors_origins`: `*`, or what a browser sends as `Origin`.
pub fn is_origin(origin: &str) -> bool {
    let is_page = || {
        let uri: Uri = origin.parse().ok()?;
        let authority = uri.authority()?;
        let written = format!("{}://{authority}", uri.scheme_str()?);
        (written.eq_ignore_ascii_case(origin) && !authority.as_str().contains('@')).then_some(())
    };
    origin == ANY || is_page().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::KeyList;

    fn request(path: &str, headers: &[(&str, &str)]) -> Request<Body> {
        let mut request = Request::get(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Body::empty()).unwrap()
    }

    fn code(rule: &Rule, headers: &[(&str, &str)]) -> Option<&'static str> {
        let request = request("/v1/models", headers);
        let origin = request.headers().get(header::ORIGIN);
        let allowed = origin.is_some_and(|origin| is_allowed(rule, origin));
        check(rule, &request, allowed).err().and_then(|error| error.code)
    }

    #[test]
    fn without_keys_a_request_names_this_machine() {
        let rule = Rule { hosts: vec!["gpu-1.lan".into()], ..Rule::default() };
        for host in [
            "localhost:8000",
            "LOCALHOST",
            "127.0.0.1:8000",
            "[::1]:8000",
            "10.0.0.7",
            "a.localhost",
            "localhost.",
            "gpu-1.lan:80",
            "GPU-1.lan",
        ] {
            assert_eq!(code(&rule, &[("host", host)]), None, "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example:8000",
            "127.0.0.1.evil.example",
            "",
            "gpu-1",
            "evil.example:127.0.0.1",
        ] {
            assert_eq!(code(&rule, &[("host", host)]), Some("unknown_host"), "{host}");
        }
        assert_eq!(code(&rule, &[]), None, "HTTP/1.0");
        let keyed =
            Rule { keys: KeyList::parse("sk-0123456789abcdef").unwrap(), ..Rule::default() };
        assert_eq!(
            code(&keyed, &[("host", "evil.example"), ("origin", "http://evil.example")]),
            None
        );
        let probe = request("/health", &[("host", "evil.example")]);
        assert!(check(&rule, &probe, false).is_ok());
    }

    #[test]
    fn without_keys_a_page_of_elsewhere_is_refused() {
        let rule = Rule { cors_origins: vec!["https://ui.example".into()], ..Rule::default() };
        let of = |origin| code(&rule, &[("host", "localhost:8000"), ("origin", origin)]);
        for origin in ["http://localhost:8000", "https://ui.example", "HTTPS://UI.example"] {
            assert_eq!(of(origin), None, "{origin}");
        }
        for origin in
            ["http://localhost:3000", "https://evil.example", "null", "", "https://ui.example.evil"]
        {
            assert_eq!(of(origin), Some("foreign_origin"), "{origin}");
        }
    }

    #[test]
    fn what_an_operator_may_list() {
        for origin in ["*", "https://ui.example", "http://localhost:3000", "http://10.0.0.1"] {
            assert!(is_origin(origin), "{origin}");
        }
        for origin in
            ["ui.example", "https://ui.example/", "https://a@ui.example", "https://", "", "null"]
        {
            assert!(!is_origin(origin), "{origin}");
        }
        assert!(
            is_host("gpu-1.lan") && !is_host("gpu-1:80") && !is_host("") && !is_host("http://x")
        );
    }
}
