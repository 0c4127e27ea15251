//! The API over TLS: only who trusts the certificate is answered, and it can be exchanged.

#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use minisgl_http::{Certificate, Limits, Listener, Settings, Tls, serve};
use support::House;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

const ASK: &[u8] = b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

/// A certificate, and what a client has to trust.
fn certificate() -> (Certificate, CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let parsed = Certificate::parse(&made.cert.pem(), &made.signing_key.serialize_pem()).unwrap();
    (parsed, made.cert.der().clone())
}

/// The answer to a client that trusts this certificate alone.
async fn ask(address: SocketAddr, trusted: &CertificateDer<'static>) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await?;
    let name = "localhost".try_into().unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    stream.write_all(ASK).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

/// The same without encryption.
async fn ask_plainly(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(ASK).await.unwrap();
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn connections_are_encrypted_with_the_certificate_in_force() {
    let house = House::saying("a");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = Tls::default();
    let (router, listeners) = (house.router.clone(), vec![Listener::Tcp(listener, tls.clone())]);
    tokio::spawn(async move {
        let settings = Settings { header_timeout: Duration::from_secs(1), ..Settings::default() };
        let limits = Limits::new(1 << 20, 2);
        serve(listeners, router, &settings, &limits, std::future::pending()).await;
    });
    assert!(ask_plainly(address).await.starts_with("HTTP/1.1 200"));

    let ((first, trusted), (second, trusted_next)) = (certificate(), certificate());
    tls.set(Some(first));
    assert!(ask(address, &trusted).await.unwrap().starts_with("HTTP/1.1 200"));
    assert!(!ask_plainly(address).await.contains("HTTP/1.1 200"));
    assert!(ask(address, &trusted_next).await.is_err(), "a stranger's certificate");
    tls.set(Some(second));
    assert!(ask(address, &trusted_next).await.unwrap().starts_with("HTTP/1.1 200"));
    assert!(ask(address, &trusted).await.is_err());

    // Whoever never begins does not hold a place for ever.
    let silent =
        [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
    assert!(ask(address, &trusted_next).await.unwrap().starts_with("HTTP/1.1 200"));
    drop(silent);
    tls.set(None);
    assert!(ask_plainly(address).await.starts_with("HTTP/1.1 200"));
}
