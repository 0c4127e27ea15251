//! Clients over real sockets: those that leave, those that dawdle, those that send too much.

#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use minisgl_http::{Limits, Settings, Tls, serve};
use minisgl_proto::Finish;
use serde_json::{Value, json};
use support::{House, PATIENCE, Step, chat_body, hold_time, say, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

struct Server {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
    /// Keeps the port after the server's end, so that nobody else listens on it then.
    _port: TcpSocket,
}

async fn start(house: &House, settings: Settings) -> Server {
    start_on(TcpSocket::new_v4().unwrap(), house, settings)
}

fn start_on(socket: TcpSocket, house: &House, settings: Settings) -> Server {
    let port = TcpSocket::new_v4().unwrap();
    for socket in [&port, &socket] {
        socket.set_reuseaddr(true).unwrap();
    }
    port.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    socket.bind(port.local_addr().unwrap()).unwrap();
    let listener = socket.listen(1024).unwrap();
    let address = listener.local_addr().unwrap();
    let router = house.router.clone();
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(async move {
        let stopped = async {
            let _ = stopped.await;
        };
        let limits = Limits::new(settings.body_bytes_max, settings.connections_max);
        serve(listener, Tls::default(), router, &settings, &limits, stopped).await;
    });
    Server { address, stop, task, _port: port }
}

fn post(body: &Value) -> String {
    let body = body.to_string();
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn ask(server: &Server, body: &Value) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(post(body).as_bytes()).await.unwrap();
    stream
}

/// Reads until `until` was seen.
async fn read_until(stream: &mut TcpStream, until: &str) -> String {
    let mut seen = String::new();
    let mut buffer = vec![0; 4096];
    timeout(PATIENCE, async {
        while !seen.contains(until) {
            let read = stream.read(&mut buffer).await.unwrap();
            assert!(read > 0, "closed after {seen:?}");
            seen += std::str::from_utf8(&buffer[..read]).unwrap();
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{until:?} did not come"));
    seen
}

#[tokio::test]
async fn who_leaves_a_stream_is_aborted() {
    let house = House::playing(vec![Step::Token(97), Step::Hang]);
    let server = start(&house, Settings::default()).await;
    let mut stream = ask(&server, &chat_body(json!({"stream": true}))).await;
    read_until(&mut stream, "\"content\":\"a\"").await;
    assert_eq!(house.alive(), 1);
    drop(stream);
    house.quiet().await;
    let metrics = house.get("/metrics").await.body;
    assert!(metrics.contains("model=\"org/tiny\",outcome=\"cancelled\"} 1"), "{metrics}");
}

#[tokio::test]
async fn who_leaves_while_waiting_is_aborted() {
    for first in [vec![], vec![Step::Token(97)]] {
        let mut steps = first;
        steps.push(Step::Hang);
        let house = House::playing(steps);
        let server = start(&house, Settings::default()).await;
        let stream = ask(&server, &chat_body(json!({}))).await;
        until("it begins", || house.alive() == 1).await;
        drop(stream);
        house.quiet().await;
        let metrics = house.get("/metrics").await.body;
        assert!(metrics.contains("outcome=\"cancelled\"} 1"), "{metrics}");
    }
}

#[tokio::test]
async fn a_thousand_leave_at_random_moments() {
    let steps = vec![
        Step::Token(97),
        Step::Pause(Duration::from_millis(3)),
        Step::Token(98),
        Step::Pause(Duration::from_millis(3)),
        Step::Last(99, Finish::Stop),
    ];
    let house = House::playing(steps);
    let server = start(&house, Settings::default()).await;
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..1000u64 {
        let address = server.address;
        clients.spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let text = post(&chat_body(json!({"stream": client % 2 == 0})));
            // Some do not even finish their request.
            let sent = if client % 7 == 0 { text.len() / 2 } else { text.len() };
            stream.write_all(&text.as_bytes()[..sent]).await.unwrap();
            tokio::time::sleep(Duration::from_micros(client * 7919 % 20_000)).await;
        });
        if clients.len() >= 64 {
            clients.join_next().await;
        }
    }
    clients.join_all().await;
    house.quiet().await;
    let body = chat_body(json!({}));
    let mut stream = ask(&server, &body).await;
    read_until(&mut stream, "\"finish_reason\":\"stop\"").await;
    let metrics = house.get("/metrics").await.body;
    assert!(metrics.contains("minisgl_http_requests_in_flight 1\n"), "{metrics}");
}

#[tokio::test]
async fn a_slow_client_stalls_nobody_and_buffers_stay_bounded() {
    let house = House::new(|request| {
        Ok(if request.sampling.seed == 1 { vec![Step::Token(97); 200_000] } else { say("quick") })
    });
    let server = start(&house, Settings::default()).await;
    let more = json!({"stream": true, "seed": 1});
    let slow = ask(&server, &chat_body(more)).await;
    // The slow one reads nothing: its tokens stop flowing when the socket is full.
    let mut before = 0;
    for _ in 0..200 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let sent = house.model.sent.load(Ordering::SeqCst);
        if sent == before && sent > 0 {
            break;
        }
        before = sent;
    }
    assert!(before < 100_000, "{before} tokens are buffered");
    let mut quick = ask(&server, &chat_body(json!({"seed": 2}))).await;
    read_until(&mut quick, "quick").await;
    // Leaving is noticed although there is still much to send.
    drop(slow);
    house.quiet().await;
}

#[tokio::test]
async fn who_never_reads_loses_the_connection() {
    let house = House::new(|request| {
        Ok(if request.sampling.seed == 1 { vec![Step::Token(97); 200_000] } else { say("next") })
    });
    let settings = Settings {
        connections_max: 1,
        write_timeout: Duration::from_millis(300),
        ..Settings::default()
    };
    // Small buffers on both sides, which the listener's connections inherit.
    let listener = TcpSocket::new_v4().unwrap();
    listener.set_send_buffer_size(8192).unwrap();
    let server = start_on(listener, &house, settings);
    let client = TcpSocket::new_v4().unwrap();
    client.set_recv_buffer_size(4096).unwrap();
    let mut deaf = client.connect(server.address).await.unwrap();
    let body = chat_body(json!({"stream": true, "seed": 1}));
    deaf.write_all(post(&body).as_bytes()).await.unwrap();
    until("it begins", || house.alive() == 1).await;
    until("it is given up", || house.alive() == 0).await;
    let sent = house.model.sent.load(Ordering::SeqCst);
    assert!(sent < 100_000, "{sent} tokens went somewhere");
    // Its place is free although its socket is still open on the client's side.
    let mut next = ask(&server, &chat_body(json!({"seed": 2}))).await;
    read_until(&mut next, "next").await;
    drop(deaf);
}

#[tokio::test]
async fn a_stream_may_pause_for_longer_than_a_write() {
    let steps = vec![
        Step::Token(97),
        Step::Pause(Duration::from_millis(300)),
        Step::Last(98, Finish::Length),
    ];
    let house = House::playing(steps);
    let settings = Settings { write_timeout: Duration::from_millis(50), ..Settings::default() };
    let server = start(&house, settings).await;
    let mut stream = ask(&server, &chat_body(json!({"stream": true}))).await;
    read_until(&mut stream, "[DONE]").await;
}

#[tokio::test]
async fn a_huge_body_is_refused_unread() {
    let house = House::saying("a");
    let server = start(&house, Settings::default()).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 104857600\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    // A client that does not look up from sending still gets the answer, not a reset.
    for _ in 0..100 {
        stream.write_all(&vec![b' '; 1 << 20]).await.unwrap();
    }
    let seen = read_until(&mut stream, "request_too_large").await;
    assert!(seen.starts_with("HTTP/1.1 413"), "{seen}");
}

#[tokio::test]
async fn headers_and_bodies_that_do_not_come_are_not_waited_for() {
    let soon = Duration::from_millis(100);
    let house = House::saying("a");
    let settings = Settings { header_timeout: soon, ..Settings::default() };
    let server = start(&house, settings).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"POST /v1/comp").await.unwrap();
    let mut rest = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap().unwrap();

    // Its head may come late.
    let settings = Settings { body_timeout: soon, ..Settings::default() };
    let house = House::with(|_| Ok(say("a")), settings.clone(), json!({}));
    let server = start(&house, settings).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.unwrap();
    let seen = read_until(&mut stream, "did not arrive").await;
    assert!(seen.starts_with("HTTP/1.1 408"), "{seen}");
}

#[tokio::test]
async fn connections_have_a_limit() {
    let house = House::playing(vec![Step::Token(97), Step::Hang]);
    let settings = Settings { connections_max: 2, ..Settings::default() };
    let server = start(&house, settings).await;
    let body = chat_body(json!({"stream": true}));
    let first = ask(&server, &body).await;
    let _second = ask(&server, &body).await;
    let _third = ask(&server, &body).await;
    until("two are served", || house.alive() == 2).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(house.model.submitted.lock().unwrap().len(), 2);
    drop(first);
    until("the third is served", || house.model.submitted.lock().unwrap().len() == 3).await;
}

#[tokio::test]
async fn idle_connections_give_way_and_busy_ones_do_not() {
    let house = House::playing(vec![Step::Token(97), Step::Hang]);
    // Nobody loses a connection because of the time that its head takes.
    let header_timeout = PATIENCE * 10;
    let settings = Settings { connections_max: 3, header_timeout, ..Settings::default() };
    let server = start(&house, settings).await;
    let mut busy = ask(&server, &chat_body(json!({"stream": true}))).await;
    read_until(&mut busy, "\"content\":\"a\"").await;
    let get = "GET /health HTTP/1.1\r\nhost: x\r\n\r\n";
    // One was answered and is kept, one never spoke.
    let mut kept = TcpStream::connect(server.address).await.unwrap();
    kept.write_all(get.as_bytes()).await.unwrap();
    read_until(&mut kept, "\"ok\"").await;
    let silent = TcpStream::connect(server.address).await.unwrap();
    for _ in 0..2 {
        let mut probe = TcpStream::connect(server.address).await.unwrap();
        probe.write_all(get.as_bytes()).await.unwrap();
        read_until(&mut probe, "\"ok\"").await;
        std::mem::forget(probe); // it stays open
    }
    for mut gone in [kept, silent] {
        assert_eq!(gone.read(&mut [0; 16]).await.unwrap_or(0), 0);
    }
    assert_eq!(house.alive(), 1, "the busy one was left alone");
    drop(busy);
}

#[tokio::test]
async fn shutdown_lets_running_requests_finish() {
    let go_on = Arc::new(Notify::new());
    let until_told = Step::Until(Arc::clone(&go_on));
    let house = House::playing(vec![Step::Token(97), until_told, Step::Last(98, Finish::Length)]);
    let server = start(&house, Settings::default()).await;
    let mut stream = ask(&server, &chat_body(json!({"stream": true}))).await;
    read_until(&mut stream, "\"content\":\"a\"").await;
    server.stop.send(()).unwrap();
    refused(server.address).await;
    // Longer than those have who were let in and said nothing yet.
    tokio::time::sleep(Duration::from_millis(600)).await;
    go_on.notify_one();
    read_until(&mut stream, "[DONE]").await;
    timeout(PATIENCE, server.task).await.unwrap().unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}

/// Returns when nobody listens at `address` any more.
async fn refused(address: SocketAddr) {
    let began = Instant::now();
    while TcpStream::connect(address).await.is_ok() {
        assert!(began.elapsed() < PATIENCE, "connections are still accepted");
        tokio::task::yield_now().await;
    }
}

// On a clock that stands still: how late the client may speak is the server's affair.
#[tokio::test(start_paused = true)]
async fn who_was_let_in_before_a_stop_is_answered_though_they_speak_after_it() {
    let time = hold_time();
    let house = House::saying("a");
    let server = start(&house, Settings::default()).await;
    let mut late = TcpStream::connect(server.address).await.unwrap();
    // Whoever came after it is answered: the server has accepted it, and nothing was sent on it.
    let mut next = TcpStream::connect(server.address).await.unwrap();
    next.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    read_until(&mut next, "\"ok\"").await;
    server.stop.send(()).unwrap();
    refused(server.address).await;
    late.write_all(post(&chat_body(json!({}))).as_bytes()).await.unwrap();
    read_until(&mut late, "\"content\":\"a\"").await;
    drop(time);
    timeout(PATIENCE, server.task).await.unwrap().unwrap();
}
