//! Questions to a hub: one request each, every phase of it with a limit.
//!
//! Owns: connections, the token, redirects. Must never: write a file, or try twice.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use httpdate::parse_http_date;
use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, DATE, ETAG, HeaderMap, HeaderValue, LOCATION,
    RANGE, RETRY_AFTER,
};
use reqwest::{Client, Method, Response, StatusCode, Url, redirect};
use serde::Deserialize;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

use super::error::HubError;
use crate::config::{HubConfig, HubLimits, TokenSource};
use crate::layout::RepoId;

/// Bytes of the hub's answer about a repo, at most.
const INFO_BYTES_MAX: usize = 32 << 20;
/// Bytes of a token file that are read.
const TOKEN_BYTES_MAX: u64 = 4096;
/// What a server may want waited, at most.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);
/// Redirects that a question follows.
const REDIRECTS_MAX: usize = 10;

/// A hub, as this user.
pub(crate) struct Hub {
    /// Follows no redirect.
    asks: Client,
    /// Follows redirects to where the bytes are; the token stays behind.
    fetches: Client,
    endpoint: String,
    token_hint: String,
    pub(crate) limits: HubLimits,
}

/// The hub's answer about a repo.
#[derive(Deserialize)]
pub(crate) struct Info {
    /// The commit of the revision.
    pub(crate) sha: String,
    /// Its files.
    pub(crate) siblings: Vec<Sibling>,
}

/// A file of a repo.
#[derive(Clone, Deserialize)]
pub(crate) struct Sibling {
    #[serde(rename = "rfilename")]
    pub(crate) name: String,
    pub(crate) size: Option<u64>,
}

/// What the hub says about a file's content.
pub(crate) struct Metadata {
    /// SHA-256 of a file in LFS, the Git blob's SHA-1 of another; what a mirror makes of it.
    pub(crate) etag: String,
    pub(crate) size: u64,
}

impl Hub {
    /// Reads the token. Connects later.
    ///
    /// # Errors
    /// The token file is unreadable, or the endpoint no URL.
    pub(crate) fn new(config: &HubConfig) -> Result<Hub, HubError> {
        let endpoint = config.endpoint();
        let unusable = |why: String| HubError::Unusable(why);
        let url = Url::parse(&endpoint)
            .map_err(|error| unusable(format!("the hub's address {endpoint:?}: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(unusable(format!(
                "the hub's address {endpoint:?} is neither http nor https"
            )));
        }
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(token) = token(config)? {
            let value = HeaderValue::try_from(format!("Bearer {token}"));
            let mut value = value.map_err(|_| unusable("the token is no header".to_string()))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let limits = config.limits;
        let client = |policy| {
            Client::builder()
                .tls_backend_preconfigured(tls()?)
                .user_agent(concat!("minisgld/", env!("CARGO_PKG_VERSION")))
                .default_headers(headers.clone())
                .connect_timeout(limits.connect)
                .redirect(policy)
                .build()
                .map_err(|error| unusable(format!("no HTTP client: {error}")))
        };
        Ok(Hub {
            asks: client(redirect::Policy::none())?,
            fetches: client(redirect::Policy::custom(to_the_bytes))?,
            endpoint,
            token_hint: token_hint(config),
            limits,
        })
    }

    /// What a repo is at its revision.
    pub(crate) async fn info(&self, repo: &RepoId) -> Result<Info, HubError> {
        let revision = repo.revision.replace('/', "%2F");
        let path = format!("/api/models/{}/revision/{revision}?blobs=true", repo.id);
        let what = "its answer about the repo";
        let mut response = self.ask(Method::GET, self.url(&path)?, what).await?;
        let mut body = Vec::new();
        while let Some(bytes) = self.chunk(&mut response, what).await? {
            if body.len() + bytes.len() > INFO_BYTES_MAX {
                let limit = INFO_BYTES_MAX >> 20;
                return Err(HubError::Unusable(format!("{what} has over {limit} MiB")));
            }
            body.extend_from_slice(&bytes);
        }
        let info: Info = serde_json::from_slice(&body)
            .map_err(|error| HubError::Unusable(format!("{what} makes no sense: {error}")))?;
        let is_commit =
            (7..=64).contains(&info.sha.len()) && info.sha.chars().all(|c| c.is_ascii_hexdigit());
        match is_commit {
            true => Ok(info),
            false => Err(HubError::Unusable(format!("it names {:?} as a commit", info.sha))),
        }
    }

    /// What a file is at a commit.
    pub(crate) async fn metadata(
        &self,
        repo: &RepoId,
        commit: &str,
        file: &str,
    ) -> Result<Metadata, HubError> {
        let response = self.ask(Method::HEAD, self.file_url(repo, commit, file)?, file).await?;
        let header = |name: &str| {
            let value = response.headers().get(name)?.to_str().ok()?;
            Some(value.trim_start_matches("W/").trim_matches('"').to_string())
        };
        if let Some(other) = header("x-repo-commit").filter(|sha| sha != commit) {
            return Err(HubError::Unusable(format!(
                "{file} was asked for at commit {commit}, and comes from {other}"
            )));
        }
        let etag = header("x-linked-etag").or_else(|| header(ETAG.as_str())).unwrap_or_default();
        // It becomes a file's name.
        let fits = (1..=128).contains(&etag.len())
            && etag.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        if !fits {
            return Err(HubError::Unusable(format!(
                "{file} has the ETag {etag:?}, which is no file name"
            )));
        }
        let size = header("x-linked-size").or_else(|| header(CONTENT_LENGTH.as_str()));
        let size = size.and_then(|size| size.parse().ok());
        let size =
            size.ok_or_else(|| HubError::Unusable(format!("{file} comes without its size")))?;
        Ok(Metadata { etag, size })
    }

    /// A file's bytes from `start` on, as far as the server heeds that.
    pub(crate) async fn bytes(
        &self,
        repo: &RepoId,
        commit: &str,
        file: &str,
        start: u64,
    ) -> Result<Response, HubError> {
        let mut request = self.fetches.get(self.file_url(repo, commit, file)?);
        if start > 0 {
            request = request.header(RANGE, format!("bytes={start}-"));
        }
        self.good(self.send(request, file).await?, file)
    }

    /// The next bytes of an answer, or `None` after the last.
    pub(crate) async fn chunk(
        &self,
        response: &mut Response,
        what: &str,
    ) -> Result<Option<Bytes>, HubError> {
        let limit = self.limits.idle;
        match tokio::time::timeout(limit, response.chunk()).await {
            Ok(chunk) => chunk.map_err(|error| HubError::network(what, &error)),
            Err(_) => {
                let what = what.to_string();
                Err(HubError::Silent { what, phase: "no byte came", limit })
            }
        }
    }

    /// Asks, and follows where a repo was moved to on the same server, but not to a file's bytes.
    async fn ask(&self, method: Method, mut url: Url, what: &str) -> Result<Response, HubError> {
        for _ in 0..REDIRECTS_MAX {
            let request = self.asks.request(method.clone(), url.clone());
            let response = self.send(request, what).await?;
            let next = response.headers().get(LOCATION).and_then(|next| next.to_str().ok());
            let next = next.filter(|_| response.status().is_redirection());
            match next.and_then(|next| url.join(next).ok()) {
                Some(next) if next.origin() == url.origin() => url = next,
                // The bytes are elsewhere, and their name and size are in this very answer.
                Some(_) if method == Method::HEAD => return Ok(response),
                _ => return self.good(response, what),
            }
        }
        Err(HubError::Unusable(format!("{what}: over {REDIRECTS_MAX} redirects")))
    }

    async fn send(
        &self,
        request: reqwest::RequestBuilder,
        what: &str,
    ) -> Result<Response, HubError> {
        let limit = self.limits.connect + self.limits.response;
        match tokio::time::timeout(limit, request.send()).await {
            Ok(sent) => sent.map_err(|error| HubError::network(what, &error)),
            Err(_) => {
                let what = what.to_string();
                Err(HubError::Silent { what, phase: "no answer came", limit })
            }
        }
    }

    fn good(&self, response: Response, what: &str) -> Result<Response, HubError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let hint = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                format!(": the repo is private, gated or not there, and {}", self.token_hint)
            }
            StatusCode::NOT_FOUND => ": it has no such repo, revision or file".to_string(),
            StatusCode::TOO_MANY_REQUESTS => ": it limits how often it is asked".to_string(),
            _ => String::new(),
        };
        let retry_after = retry_after(response.headers());
        Err(HubError::Status { what: what.to_string(), status, retry_after, hint })
    }

    fn url(&self, path: &str) -> Result<Url, HubError> {
        Url::parse(&format!("{}{path}", self.endpoint))
            .map_err(|error| HubError::Unusable(format!("{}{path}: {error}", self.endpoint)))
    }

    fn file_url(&self, repo: &RepoId, commit: &str, file: &str) -> Result<Url, HubError> {
        self.url(&format!("/{}/resolve/{commit}/{file}", repo.id))
    }
}

/// Follows to wherever the bytes are, but never from an encrypted connection to an open one.
fn to_the_bytes(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let from = attempt.previous().last().map(Url::scheme);
    if attempt.previous().len() > REDIRECTS_MAX {
        attempt.error("too many redirects")
    } else if from == Some("https") && attempt.url().scheme() != "https" {
        attempt.error("a redirect from https to an open connection")
    } else {
        attempt.follow()
    }
}

fn tls() -> Result<ClientConfig, HubError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let config =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| HubError::Unusable(format!("no TLS: {error}")))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// The token in force. A file that was asked for must be there.
fn token(config: &HubConfig) -> Result<Option<String>, HubError> {
    use std::io::Read;
    let (text, place) = match config.token_source() {
        None => return Ok(None),
        Some(TokenSource::Environment(token)) => (token, "HF_TOKEN".to_string()),
        Some(TokenSource::File(path)) => {
            let place = format!("the token file {}", path.display());
            let mut text = String::new();
            std::fs::File::open(&path)
                .and_then(|file| file.take(TOKEN_BYTES_MAX).read_to_string(&mut text))
                .map_err(|error| HubError::Unusable(format!("{place} is unreadable: {error}")))?;
            (text, place)
        }
    };
    let token = text.trim();
    if token.chars().any(|c| !c.is_ascii_graphic()) {
        return Err(HubError::Unusable(format!("{place} holds more than a token")));
    }
    Ok((!token.is_empty()).then(|| token.to_string()))
}

fn token_hint(config: &HubConfig) -> String {
    match config.token_source() {
        Some(TokenSource::File(path)) => {
            format!("the token in {} is not enough", path.display())
        }
        Some(TokenSource::Environment(_)) => "the token in HF_TOKEN is not enough".to_string(),
        None => "no token was sent; configure a token file".to_string(),
    }
}

/// What a server wants waited: seconds, or a date, which counts by the server's own clock where it tells the time.
/// Anything else is no word.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let pause = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        let now = headers.get(DATE).and_then(|now| parse_http_date(now.to_str().ok()?).ok());
        let then = parse_http_date(text).ok()?;
        then.duration_since(now.unwrap_or_else(SystemTime::now)).unwrap_or_default()
    };
    Some(pause.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_wants_waited_is_seconds_or_a_date() {
        let read = |text: &str| {
            let headers = [(RETRY_AFTER, HeaderValue::try_from(text).unwrap())];
            retry_after(&headers.into_iter().collect())
        };
        assert_eq!(read(" 7 "), Some(Duration::from_secs(7)));
        for passed in ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "0"] {
            assert_eq!(read(passed), Some(Duration::ZERO), "{passed}");
        }
        // Without the server's clock, by this machine's.
        let in_an_hour = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3600));
        let pause = read(&in_an_hour).unwrap().as_secs();
        assert!((3000..=3600).contains(&pause), "{pause}");
        for nothing in ["", "-1", "1.5", "soon", "Sun, 99 Nov 1994 08:49:37 GMT"] {
            assert_eq!(read(nothing), None, "{nothing}");
        }
    }
}
