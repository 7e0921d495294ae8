//! Stopping: what was asked for is answered, and nobody is waited for without end.

use std::time::Duration;

use hexz_nbd::server::Limits;
use tokio::net::TcpStream;

use crate::support::client::request;
use crate::support::server::Server;

#[tokio::test]
async fn what_was_accepted_is_answered_and_then_the_server_ends() {
    let server = Server::start().await;
    let address = server.address;
    let mut idle = server.open("disk").await;
    let mut greeted = server.greet().await;
    let mut working = server.open("zstd").await;
    working.request(0, 0, 1, 0, 1 << 20).await;
    // The first byte of the reply tells that the request was accepted.
    working.stream.peek(&mut [0]).await.unwrap();
    server.stop();
    assert_eq!(working.reply(1 << 20).await.0, 0);
    working.expect_end().await;
    idle.expect_end().await;
    greeted.expect_end().await;
    server.stopped().await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_when_time_is_up() {
    let drain_timeout = Duration::from_millis(100);
    let server = Server::with_limits(Limits { drain_timeout, ..Limits::default() }).await;
    let client = server.open("disk").await;
    let requests = request(0, 0, 1, 0, 16 << 20).repeat(10);
    client.stream.try_write(&requests).unwrap();
    client.stream.peek(&mut [0]).await.unwrap();
    server.stop();
    server.stopped().await.unwrap();
}
