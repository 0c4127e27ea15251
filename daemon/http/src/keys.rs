//! API keys: `Authorization: Bearer KEY` or `x-api-key: KEY`, compared without telling by the time it takes how much of it is right.
//! A key may have a name, by which log and metrics know who asks; what a key made is its name's, or its own ([`Owner`]).
//!
//! Owns: the keys in force, as digests, which can be exchanged while requests are served. Must never: keep, print or
//! log a key.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use axum::body::Body;
use axum::extract::State;
use axum::http::{Extensions, HeaderName, HeaderValue, Request, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use minisgl_accept::Throttle;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::error::ApiError;
use crate::record::{KeyName, Record};

/// Where Anthropic's clients put a key.
static X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Keys at most.
const KEYS_MAX: usize = 1024;
/// Letters of a key: fewer can be guessed.
const KEY_BYTES_MIN: usize = 16;
/// The same at most.
const KEY_BYTES_MAX: usize = 512;
/// Letters of a key's name, at most.
const NAME_BYTES_MAX: usize = 64;

/// A list of keys, of which only digests are kept: all are of one length, and none is a key.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct KeyList(Vec<Key>);

#[derive(Clone, PartialEq, Eq)]
struct Key {
    name: Option<KeyName>,
    digest: [u8; 32],
}

/// Whose a request is: what one owner made, another neither sees nor ends. Handlers find it among the request's extensions.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub enum Owner {
    /// Everybody's, where there are no keys.
    #[default]
    Anybody,
    /// That of all keys of this name.
    Name(Arc<str>),
    /// That of a key without a name: its digest.
    Key([u8; 32]),
}

impl Owner {
    /// That of a request.
    pub fn of(extensions: &Extensions) -> Owner {
        extensions.get().cloned().unwrap_or_default()
    }
}

impl Key {
    fn owner(&self) -> Owner {
        match &self.name {
            Some(KeyName(name)) => Owner::Name(Arc::clone(name)),
            None => Owner::Key(self.digest),
        }
    }
}

impl fmt::Debug for KeyList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

/// What is wrong with a list of keys, without what is in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKeys {
    /// A line that cannot be a key.
    #[error(
        "line {line} is no API key: it needs {KEY_BYTES_MIN} to {KEY_BYTES_MAX} letters, digits and signs of ASCII \
         without a space, after NAME: if it has a name; make one with: openssl rand -hex 32"
    )]
    Line {
        /// Counted from 1.
        line: usize,
    },
    /// Too many.
    #[error("there are more than {KEYS_MAX} API keys")]
    TooMany,
}

impl KeyList {
    /// Reads keys, one a line, as `KEY` or `NAME:KEY`; empty lines and those that begin with `#` are skipped. Several
    /// keys may have one name: the old one and the new one while clients change over.
    ///
    /// # Errors
    /// See [`BadKeys`].
    pub fn parse(text: &str) -> Result<KeyList, BadKeys> {
        let mut keys = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, key) = match line.split_once(':') {
                Some((name, key)) if is_name(name) => (Some(KeyName(name.into())), key),
                _ => (None, line),
            };
            let fits = (KEY_BYTES_MIN..=KEY_BYTES_MAX).contains(&key.len());
            if !fits || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(BadKeys::Line { line: at + 1 });
            }
            if keys.len() >= KEYS_MAX {
                return Err(BadKeys::TooMany);
            }
            keys.push(Key { name, digest: digest(key) });
        }
        Ok(KeyList(keys))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The key that this is, if it is one of them; takes as long for any that is not.
    fn find(&self, key: &str) -> Option<&Key> {
        let given = digest(key);
        self.0.iter().fold(None, |found, known| {
            if known.digest.ct_eq(&given).into() { Some(known) } else { found }
        })
    }
}

/// Letters, digits, `.`, `_` and `-`: what a label or a field of a log may be.
fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed)
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// Who is let in over the network. Clones are the same rule.
#[derive(Clone, Debug, Default)]
pub struct Keys(Arc<RwLock<Arc<Rule>>>);

/// The rule in force.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    /// The keys; where there are none, everybody is let in.
    pub keys: KeyList,
    /// Serve `/metrics` to everybody.
    pub open_metrics: bool,
    /// Names of this machine, besides `localhost`; without keys, a request has to name it.
    pub hosts: Vec<String>,
    /// Web pages that may use the API, as browsers name them in `Origin`; `*` is all.
    pub cors_origins: Vec<String>,
}

/// Whether this asks how the daemon is, which is told to everybody.
pub fn is_probe(path: &str) -> bool {
    ["/health", "/health_generate", "/livez", "/readyz", "/ping"].contains(&path)
}

impl Keys {
    /// With this rule.
    pub fn new(rule: Rule) -> Self {
        Keys(Arc::new(RwLock::new(Arc::new(rule))))
    }

    /// Exchanges the rule; requests that were let in go on.
    pub fn set(&self, rule: Rule) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rule);
    }

    /// The rule in force.
    pub(crate) fn rule(&self) -> Arc<Rule> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whose key lets this request in, if it needs one.
    fn check(&self, request: &Request<Body>) -> Result<Owner, ApiError> {
        let rule = self.rule();
        let path = request.uri().path();
        let is_open = is_probe(path) || (path == "/metrics" && rule.open_metrics);
        if rule.keys.is_empty() || is_open {
            return Ok(Owner::Anybody);
        }
        let refuse = |message: &str| {
            ApiError::new(StatusCode::UNAUTHORIZED, message).with_code("invalid_api_key")
        };
        let bearer = request.headers().get(header::AUTHORIZATION).map(|header| {
            let (scheme, key) = header.to_str().ok()?.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(key)
        });
        let own = request.headers().get(&X_API_KEY).map(|header| header.to_str().ok());
        // Claude Code may send both, of which one is for somebody else.
        let given = [bearer.flatten(), own.flatten()];
        let found = given.into_iter().flatten().find_map(|key| rule.keys.find(key.trim()));
        match found {
            Some(key) => Ok(key.owner()),
            None if bearer == Some(None) && own.is_none() => {
                Err(refuse("the Authorization header is not: Bearer KEY"))
            }
            None if bearer.is_none() && own.is_none() => Err(refuse(
                "no API key was sent; send one of this server's as: Authorization: Bearer KEY (or x-api-key: KEY)",
            )),
            None => Err(refuse("the API key is not one of this server's; ask its operator")),
        }
    }
}

static REFUSED: Throttle = Throttle::new();

/// Lets through who may, and tells handlers and record by which key.
pub async fn admit(State(keys): State<Keys>, mut request: Request<Body>, next: Next) -> Response {
    match keys.check(&request) {
        Ok(owner) => {
            if let Owner::Name(name) = &owner {
                let name = KeyName(Arc::clone(name));
                if let Some(record) = request.extensions().get::<Arc<Record>>() {
                    record.key(&name);
                }
                request.extensions_mut().insert(name);
            }
            request.extensions_mut().insert(owner);
            next.run(request).await
        }
        Err(error) => {
            if let Some(requests) = REFUSED.count() {
                tracing::warn!(requests, "refused: no API key of this server's");
            }
            let mut response = error.into_response();
            let challenge = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
            response
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "sk-0123456789abcdef";

    #[test]
    fn keys_are_lines_and_the_rest_is_refused_without_being_told() {
        let list = KeyList::parse(&format!("# ours\n\n  {KEY}\t\n#{KEY}2\n")).unwrap();
        assert_eq!((list.len(), format!("{list:?}")), (1, "1 keys".to_owned()));
        assert!(list.find(KEY).is_some());
        for wrong in ["", "sk-0123456789abcde", "sk-0123456789abcdefg", "SK-0123456789ABCDEF"] {
            assert!(list.find(wrong).is_none(), "{wrong}");
        }
        assert_eq!(KeyList::parse("# none\n"), Ok(KeyList::default()));
        for (text, line) in [("short", 1), ("\n\nwith a space in it somewhere\n", 3)] {
            let error = KeyList::parse(text).unwrap_err();
            assert_eq!(error, BadKeys::Line { line });
            assert!(!error.to_string().contains(text.trim()), "{error}");
        }
        assert!(KeyList::parse(&"x".repeat(KEY_BYTES_MAX + 1)).is_err());
        let many = |count| KeyList::parse(&vec![KEY; count].join("\n"));
        assert_eq!(many(KEYS_MAX).map(|keys| keys.len()), Ok(KEYS_MAX));
        assert_eq!(many(KEYS_MAX + 1), Err(BadKeys::TooMany));
    }

    #[test]
    fn keys_have_names_and_a_name_has_several_keys() {
        let text = format!("ann:{KEY}\nann:{KEY}2\n{KEY}3\nno name:{KEY}\n");
        assert_eq!(KeyList::parse(&text), Err(BadKeys::Line { line: 4 }));
        let list = KeyList::parse(&text.replace("no name", "sk/proj")).unwrap();
        let name = |key: &str| list.find(key).map(|key| key.name.as_ref().map(|n| n.0.to_string()));
        assert_eq!(name(KEY), Some(Some("ann".to_owned())));
        assert_eq!(name(&format!("{KEY}2")), Some(Some("ann".to_owned())));
        assert_eq!(name(&format!("{KEY}3")), Some(None));
        assert_eq!(name(&format!("ann:{KEY}")), None, "the name is no part of the key");
        assert_eq!(name(&format!("sk/proj:{KEY}")), Some(None), "a key with a colon");
        assert!(KeyList::parse("ann:short").is_err());
        assert!(
            KeyList::parse(&format!("{}:{KEY}", "n".repeat(NAME_BYTES_MAX + 1)))
                .is_ok_and(|list| list.find(KEY).is_none()),
            "too long for a name"
        );
    }

    #[test]
    fn what_keys_of_one_name_make_is_theirs_and_that_of_others_their_own() {
        let text = format!("ann:{KEY}1\nann:{KEY}2\n{KEY}3\n{KEY}4\nbob:{KEY}5\n");
        let list = KeyList::parse(&text).unwrap();
        let owner = |at: u32| list.find(&format!("{KEY}{at}")).unwrap().owner();
        assert!(owner(1) == owner(2) && owner(3) == owner(3));
        for (one, other) in [(1, 3), (1, 5), (3, 4), (3, 5)] {
            assert!(owner(one) != owner(other), "{one} {other}");
        }
        assert!((1..=5).all(|at| owner(at) != Owner::Anybody));
    }

    #[test]
    fn a_key_opens_every_route_and_health_needs_none() {
        let keys = Keys::default();
        let check = |path: &str, header: Option<&str>| {
            let mut request = Request::get(path);
            if let Some(header) = header {
                request = request.header(header::AUTHORIZATION, header);
            }
            let checked = keys.check(&request.body(Body::empty()).unwrap());
            checked.map(drop).map_err(|error| error.status.as_u16())
        };
        assert_eq!(check("/v1/models", None), Ok(()), "no keys, no question");
        let rule = Rule { keys: KeyList::parse(KEY).unwrap(), ..Rule::default() };
        keys.set(rule.clone());
        let bearer = format!("Bearer {KEY}");
        assert_eq!(check("/v1/models", Some(&bearer)), Ok(()));
        assert_eq!(check("/v1/models", Some(&format!("bearer  {KEY}"))), Ok(()));
        for header in
            [None, Some(""), Some(KEY), Some("Basic x"), Some("Bearer "), Some("Bearer x")]
        {
            for path in ["/v1/models", "/v1/chat/completions", "/metrics", "/health/x", "/nothing"]
            {
                assert_eq!(check(path, header), Err(401), "{path} {header:?}");
            }
            for path in ["/health", "/health_generate", "/livez", "/readyz", "/ping"] {
                assert_eq!(check(path, header), Ok(()), "{path}");
            }
        }
        let both = |own: &str, bearer: Option<&str>| {
            let mut request = Request::get("/v1/models").header("x-api-key", own);
            if let Some(bearer) = bearer {
                request = request.header(header::AUTHORIZATION, bearer);
            }
            keys.check(&request.body(Body::empty()).unwrap()).is_ok()
        };
        assert!(both(KEY, None) && both(KEY, Some("Bearer other")) && both("x", Some(&bearer)));
        assert!(!both("", None) && !both("x", Some("Bearer x")) && !both(&bearer, None));
        keys.set(Rule { open_metrics: true, ..rule });
        assert_eq!((check("/metrics", None), check("/v1/models", None)), (Ok(()), Err(401)));
    }
}
