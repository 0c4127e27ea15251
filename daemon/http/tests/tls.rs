//! The API over TLS: only who trusts the certificate is answered, and it can be exchanged.

#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use minisgl_http::{Certificate, Limits, Settings, Tls, serve};
use support::{House, PATIENCE};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
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
    let mut stream = shake(TcpStream::connect(address).await?, trusted).await?;
    stream.write_all(ASK).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

/// TLS with a server that has this certificate alone.
async fn shake(
    stream: TcpStream,
    trusted: &CertificateDer<'static>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "localhost".try_into().unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
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
    let (router, certificates) = (house.router.clone(), tls.clone());
    tokio::spawn(async move {
        let settings = Settings { header_timeout: PATIENCE * 10, ..Settings::default() };
        let limits = Limits::new(1 << 20, 2);
        serve(listener, certificates, router, &settings, &limits, std::future::pending()).await;
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

    // Whoever does not begin gives way.
    let silent =
        [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
    let answer = tokio::time::timeout(PATIENCE, ask(address, &trusted_next)).await;
    assert!(answer.expect("no place is made").unwrap().starts_with("HTTP/1.1 200"));
    drop(silent);
    tls.set(None);
    assert!(ask_plainly(address).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn who_never_begins_loses_the_connection() {
    let house = House::saying("a");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = Tls::new(Some(certificate().0));
    let router = house.router.clone();
    tokio::spawn(async move {
        let header_timeout = Duration::from_millis(200);
        let settings = Settings { header_timeout, ..Settings::default() };
        let limits = Limits::new(1 << 20, 2);
        serve(listener, tls, router, &settings, &limits, std::future::pending()).await;
    });
    let mut silent = TcpStream::connect(address).await.unwrap();
    let end = tokio::time::timeout(PATIENCE, silent.read(&mut [0; 16])).await;
    assert_eq!(end.expect("it is kept").unwrap_or(0), 0);
}

#[tokio::test]
async fn a_reader_that_stops_near_the_end_of_an_answer_loses_the_connection() {
    // All of it fits into what TLS holds back, and little of it into the sockets' buffers.
    let router = axum::Router::new().route("/", axum::routing::get(async || "x".repeat(48 << 10)));
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(4096).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(16).unwrap();
    let address = listener.local_addr().unwrap();
    let (certificate, trusted) = certificate();
    let write_timeout = Duration::from_millis(300);
    tokio::spawn(async move {
        let settings = Settings { write_timeout, ..Settings::default() };
        let tls = Tls::new(Some(certificate));
        let limits = Limits::new(1 << 20, 1);
        serve(listener, tls, router, &settings, &limits, std::future::pending()).await;
    });
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let stream = socket.connect(address).await.unwrap();
    let mut deaf = shake(stream, &trusted).await.unwrap();
    deaf.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    deaf.read_exact(&mut [0; 64]).await.unwrap();
    // It is busy, so it does not give way; its place is free when its time is over.
    let next = tokio::time::timeout(PATIENCE, ask(address, &trusted)).await;
    assert!(next.expect("the place is free").unwrap().starts_with("HTTP/1.1 "));
    let mut rest = Vec::new();
    assert!(deaf.read_to_end(&mut rest).await.is_err() || rest.len() < 48 << 10);
}
