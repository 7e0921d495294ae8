//! What one client may cost the others.

use std::net::TcpStream;
use std::num::NonZeroUsize;
use std::process::Command;

use hexz_nbd::server::Limits;

use crate::support::fixtures;
use crate::support::process::{Client, HEXZ_NBD, Process};
use crate::support::server::Server;

#[tokio::test]
async fn a_client_beyond_the_limit_is_served_when_another_leaves() {
    let connections_max = NonZeroUsize::MIN;
    let server = Server::with_limits(Limits { connections_max, ..Limits::default() }).await;
    for _ in 0..20 {
        let first = server.open("disk").await;
        let mut second = server.connect().await;
        let mut nothing = [0];
        assert!(second.stream.try_read(&mut nothing).is_err(), "greeted beyond the limit");
        drop(first);
        second.greet(3).await;
        second.go("disk").await;
    }
}

/// Every slot comes back, however a session ends.
#[tokio::test]
async fn slots_are_given_back_however_sessions_end() {
    let connections_max = NonZeroUsize::new(4).unwrap();
    let server = Server::with_limits(Limits { connections_max, ..Limits::default() }).await;
    for round in 0..100 {
        let mut client = server.connect().await;
        match round % 4 {
            0 => client.greet(u32::MAX).await,
            1 => client.send(&[0; 100]).await,
            2 => drop(server.open("disk").await),
            _ => {}
        }
    }
    server.serves().await;
}

/// A server that cannot accept, for want of descriptors, goes on when there are some again.
#[test]
fn running_out_of_descriptors_is_survived() {
    let mut limited = Command::new("/bin/sh");
    limited.args(["-c", "ulimit -n 40; exec \"$0\" \"$@\"", HEXZ_NBD]);
    let server = Process::start_from(limited, [fixtures::path("v082-onebyte.hxz")]);
    let clients: Vec<TcpStream> =
        (0..60).map(|_| TcpStream::connect(("127.0.0.1", server.port())).unwrap()).collect();
    server.wait_for("cannot accept a client", 1);
    drop(clients);
    let size = Client::new("nbdinfo").args(["--size", &server.uri("")]).run().succeeded();
    assert_eq!(size.text().trim(), "1");
}
