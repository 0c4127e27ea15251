//! Secrets come from files: one that the configuration names, or a credential that systemd passes on.
//!
//! Owns: where they are, and reading them within limits. Must never: print what is in them.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use minisgl_http::{Certificate, KeyList};

/// Bytes of a file of secrets, at most.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Name of the credential with API keys.
const API_KEYS: &str = "api_keys";
/// Name of the credential with the hub's token.
const HUB_TOKEN: &str = "hub_token";

/// Name of the credential with the key of the certificate.
const TLS_KEY: &str = "tls_key";
/// What the unit's credential of API keys holds where the operator has set none (`SetCredential=`).
const NO_API_KEYS: &str = "# none";
/// What systemd makes the credential of; by hand, with the system's configuration, the file itself is read.
const API_KEYS_SOURCE: &str = "/etc/minisgld/api_keys";

/// Where the API keys are: the configured file, systemd's credential, or what that is made of.
pub(super) fn api_keys_place(configured: Option<&Path>, is_system: bool) -> Option<PathBuf> {
    let by_hand = || {
        let source = PathBuf::from(API_KEYS_SOURCE);
        let is_service = std::env::var_os("CREDENTIALS_DIRECTORY").is_some();
        (is_system && !is_service && source.exists()).then_some(source)
    };
    configured.map(Path::to_path_buf).or_else(|| credential(API_KEYS)).or_else(by_hand)
}

/// Where the hub's token is, if systemd passes one on.
pub(super) fn hub_token_place() -> Option<PathBuf> {
    // The unit's default is a comment: a token that nobody set.
    let is_set = |path: &PathBuf| {
        read(path).is_ok_and(|text| !text.trim().is_empty() && !text.trim_start().starts_with('#'))
    };
    credential(HUB_TOKEN).filter(is_set)
}

/// A credential of the service, `LoadCredential=` in the unit.
fn credential(name: &str) -> Option<PathBuf> {
    let folder = PathBuf::from(std::env::var_os("CREDENTIALS_DIRECTORY")?);
    Some(folder.join(name)).filter(|path| path.exists())
}

/// The API keys of a file. A file is there to ask for keys, so one without any is a fault (cut short, or emptied by an
/// editor), never an open door; only the unit's placeholder stands for none.
///
/// # Errors
/// It cannot be read, a line is no key, or there is no key in it.
pub(super) fn api_keys(path: &Path) -> anyhow::Result<KeyList> {
    keys_of(path, credential(API_KEYS).as_deref() == Some(path))
}

fn keys_of(path: &Path, is_credential: bool) -> anyhow::Result<KeyList> {
    let (text, name) = (read(path)?, path.display());
    let keys = KeyList::parse(&text).with_context(|| format!("in the API keys {name}"))?;
    let is_placeholder = is_credential && text.trim() == NO_API_KEYS;
    if keys.is_empty() && !is_placeholder {
        bail!(
            "there is no key in the API keys {name}: put one in, a line each, or, to serve everybody who reaches the \
             address, remove the file and what names it ([http] api_keys_file, LoadCredential=)"
        );
    }
    Ok(keys)
}

/// The certificate of these files; the key may be a credential.
///
/// # Errors
/// One of them is missing, cannot be read, or they do not belong together.
pub(super) fn certificate(
    chain: Option<&Path>,
    key: Option<&Path>,
) -> anyhow::Result<Option<Certificate>> {
    let Some(chain) = chain else {
        if key.is_some() {
            bail!("[http] tls_key is set and tls_cert is not: set both, or none for no TLS");
        }
        return Ok(None);
    };
    let Some(key) = key.map(Path::to_path_buf).or_else(|| credential(TLS_KEY)) else {
        bail!(
            "[http] tls_cert is set, and there is no key: set tls_key, or give the service one with \
             LoadCredential={TLS_KEY}:FILE"
        );
    };
    let certificate = Certificate::parse(&read(chain)?, &read(&key)?);
    let (chain, key) = (chain.display(), key.display());
    certificate.with_context(|| format!("[http] tls_cert {chain}, tls_key {key}")).map(Some)
}

fn read(path: &Path) -> anyhow::Result<String> {
    let name = path.display();
    let file = std::fs::File::open(path).with_context(|| format!("cannot read {name}"))?;
    let mut text = String::new();
    let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text);
    let bytes = read.with_context(|| format!("cannot read {name}"))?;
    if bytes as u64 > FILE_BYTES_MAX {
        bail!("{name} has more than {FILE_BYTES_MAX} bytes");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_needs_its_key_and_both_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let (chain, key) = (dir.path().join("chain.pem"), dir.path().join("key.pem"));
        assert!(certificate(None, None).unwrap().is_none());
        let refused = |chain, key| format!("{:#}", certificate(chain, key).unwrap_err());
        assert!(refused(None, Some(&key)).contains("tls_cert is not"));
        assert!(refused(Some(&chain), None).contains("there is no key"));
        assert!(refused(Some(&chain), Some(&key)).contains("cannot read"));
        std::fs::write(&chain, "x").unwrap();
        std::fs::write(&key, "secret").unwrap();
        let text = refused(Some(&chain), Some(&key));
        assert!(text.contains("chain.pem") && text.contains("key.pem"), "{text}");
        assert!(text.contains("no certificate in PEM") && !text.contains("secret"), "{text}");
    }

    #[test]
    fn keys_are_read_within_limits_and_faults_name_the_file_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        std::fs::write(&path, "# two\nsk-0123456789abcdef\nsk-fedcba9876543210\n").unwrap();
        assert_eq!(api_keys(&path).unwrap().len(), 2);
        std::fs::write(&path, "sk-0123456789abcdef\nsk-secret\n").unwrap();
        let error = format!("{:#}", api_keys(&path).unwrap_err());
        assert!(error.contains("keys: line 2 is no API key"), "{error}");
        assert!(!error.contains("sk-"), "{error}");
        std::fs::write(&path, "#".repeat(FILE_BYTES_MAX as usize + 1)).unwrap();
        assert!(format!("{:#}", api_keys(&path).unwrap_err()).contains("more than 1048576 bytes"));
        for empty in ["", "\n", "# sk-0123456789abcdef\n", "# none\n"] {
            std::fs::write(&path, empty).unwrap();
            let error = format!("{:#}", api_keys(&path).unwrap_err());
            assert!(error.contains("there is no key in the API keys"), "{empty:?}: {error}");
            assert!(error.contains("/keys") && error.contains("remove the file"), "{error}");
        }
        assert!(keys_of(&path, true).unwrap().is_empty(), "the unit's placeholder");
        std::fs::write(&path, "").unwrap();
        assert!(keys_of(&path, true).is_err(), "a credential of an emptied file");
        let error = format!("{:#}", api_keys(&dir.path().join("none")).unwrap_err());
        assert!(error.contains("cannot read") && error.contains("/none"), "{error}");
    }
}
