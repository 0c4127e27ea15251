//! TLS of the OpenAI API, for those who want it without a proxy in front.
//!
//! Owns: the certificate in force, which can be exchanged while connections are open. Must never: print a key.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use sha2::{Digest, Sha256};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};

/// A certificate and its key, ready to be used.
#[derive(Clone)]
pub struct Certificate {
    config: Arc<ServerConfig>,
    /// Of both files, to tell one certificate from another.
    digest: [u8; 32],
}

impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificate")
    }
}

/// Why there is no TLS with these files.
#[derive(Debug, thiserror::Error)]
pub enum BadCertificate {
    /// The first file has none.
    #[error("there is no certificate in PEM (-----BEGIN CERTIFICATE-----)")]
    NoCertificate,
    /// The second has none.
    #[error("there is no private key in PEM (-----BEGIN PRIVATE KEY-----)")]
    NoKey,
    /// They cannot be used, or not together.
    #[error("certificate and key cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
}

impl Certificate {
    /// A chain of certificates, the server's own first, and its key, both in PEM.
    ///
    /// # Errors
    /// See [`BadCertificate`].
    pub fn parse(chain: &str, key: &str) -> Result<Certificate, BadCertificate> {
        let certificates = CertificateDer::pem_slice_iter(chain.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| BadCertificate::NoCertificate)?;
        if certificates.is_empty() {
            return Err(BadCertificate::NoCertificate);
        }
        let own =
            PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| BadCertificate::NoKey)?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(certificates, own)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut digest = Sha256::new();
        for text in [chain, key] {
            digest.update((text.len() as u64).to_le_bytes());
            digest.update(text);
        }
        Ok(Certificate { config: Arc::new(config), digest: digest.finalize().into() })
    }
}

/// Whether connections are encrypted, and with which certificate. Clones are the same rule.
#[derive(Clone, Debug, Default)]
pub struct Tls(Arc<RwLock<Option<Certificate>>>);

impl Tls {
    /// With this certificate; without one, connections are not encrypted.
    pub fn new(certificate: Option<Certificate>) -> Self {
        Tls(Arc::new(RwLock::new(certificate)))
    }

    /// Exchanges it for the next connections.
    pub fn set(&self, certificate: Option<Certificate>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = certificate;
    }

    /// What a new connection begins with, if it is to be encrypted.
    pub(crate) fn acceptor(&self) -> Option<TlsAcceptor> {
        let certificate = self.0.read().unwrap_or_else(PoisonError::into_inner);
        certificate.as_ref().map(|certificate| Arc::clone(&certificate.config).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_and_a_key_of_another_is_refused() {
        let make = || rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let (one, other) = (make(), make());
        let (chain, key) = (one.cert.pem(), one.signing_key.serialize_pem());
        let certificate = Certificate::parse(&chain, &key).unwrap();
        assert_eq!(certificate, Certificate::parse(&chain, &key).unwrap());
        let foreign = other.signing_key.serialize_pem();
        assert_ne!(certificate, Certificate::parse(&other.cert.pem(), &foreign).unwrap());
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let renewed = params.self_signed(&one.signing_key).unwrap().pem();
        assert_ne!(certificate, Certificate::parse(&renewed, &key).unwrap(), "of the same key");
        let refused =
            |chain: &str, key: &str| Certificate::parse(chain, key).unwrap_err().to_string();
        assert!(refused("", &key).contains("no certificate"));
        assert!(refused(&key, &key).contains("no certificate"));
        assert!(refused(&chain, "").contains("no private key"));
        assert!(refused(&chain, &chain).contains("no private key"));
        assert!(refused(&chain, &foreign).contains("cannot be used"));
        assert_eq!(format!("{:?}", Tls::new(Some(certificate))).matches("PRIVATE").count(), 0);
    }
}
