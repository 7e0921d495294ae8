//! Random clients against the server, over streams in memory that cut what is sent anywhere.
//! Everything that a client does follows from one number, its seed.
//!
//! `HEXZ_NBD_SIMULATION_SEED=17` runs the session of that seed alone, and
//! `HEXZ_NBD_SIMULATION_SESSIONS=100000` more of them.

mod model;
mod options;
pub(crate) mod random;
mod replies;
mod requests;
mod wire;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hexz_nbd::server::Limits;
use tokio::io::DuplexStream;
use tokio::task::{Id, JoinSet};
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use self::model::{Export, FILES};
use self::options::{Agreed, Exchange, Payload, Replies, Then};
use self::random::Random;
use self::replies::Awaited;
use self::requests::{DISC, Terms};
use self::wire::{Pace, Receiver, Sender};
use crate::support::client::{INFO, META_CONTEXT, SERVER};
use crate::support::server::Server;

/// Sessions without an order for more.
const SESSIONS: u64 = 3000;

/// How many go on at the same time.
const AT_ONCE: usize = 8;

/// Nothing takes this long, whatever else the machine does.
const PATIENCE: Duration = Duration::from_secs(120);

/// What kind of client a seed makes.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Does as it should, and odd things that it may.
    Valid(Habit),
    /// Sends what a valid client sends, damaged.
    Hostile,
    /// Is gone in the middle of something.
    Vanishing,
    /// Asks for much and takes nothing.
    Greedy,
}

#[derive(Debug, Clone, Copy)]
enum Habit {
    Quick,
    Slow,
}

#[tokio::test]
async fn every_reply_to_random_clients_is_what_the_model_says() {
    let server = Server::exporting(&FILES, Limits::default()).await;
    let exports: Arc<[Export]> = Export::all().into();
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seeds = match number("HEXZ_NBD_SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("HEXZ_NBD_SIMULATION_SESSIONS").unwrap_or(SESSIONS),
    };
    let mut sessions = Sessions::default();
    for seed in seeds {
        if sessions.running.len() >= AT_ONCE {
            sessions.finish_one().await;
        }
        let (exports, streams) = (Arc::clone(&exports), server.streams());
        let (ours, theirs) = tokio::io::duplex(buffer_bytes(seed));
        sessions.begin(seed, async move {
            tokio::join!(streams.serve(theirs), simulate(seed, ours, &exports));
        });
        if seed % 500 == 499 {
            server.serves().await;
        }
    }
    while !sessions.running.is_empty() {
        sessions.finish_one().await;
    }
    server.serves().await;
    server.stop();
    server.stopped().await.unwrap();
}

/// Sessions that go on, each with its seed.
#[derive(Default)]
struct Sessions {
    running: JoinSet<Result<(), Elapsed>>,
    seeds: HashMap<Id, u64>,
}

impl Sessions {
    fn begin(&mut self, seed: u64, session: impl Future<Output = ()> + Send + 'static) {
        let task = self.running.spawn(timeout(PATIENCE, session));
        self.seeds.insert(task.id(), seed);
    }

    /// Waits for the end of one, and fails with its seed if that was not as it should be.
    async fn finish_one(&mut self) {
        let finished = self.running.join_next_with_id().await.unwrap();
        let id = finished.as_ref().map_or_else(|error| error.id(), |(id, _)| *id);
        let seed = self.seeds.remove(&id).unwrap();
        match finished {
            Ok((_, Ok(()))) => {}
            Ok((_, Err(_))) => panic!("HEXZ_NBD_SIMULATION_SEED={seed} does not end"),
            Err(panic) => panic!("HEXZ_NBD_SIMULATION_SEED={seed} fails: {panic}"),
        }
    }
}

/// How much the stream holds in each direction: little, so that both sides wait for each other.
fn buffer_bytes(seed: u64) -> usize {
    *Random::new(!seed).pick(&[16, 100, 4096, 100_000])
}

async fn simulate(seed: u64, stream: DuplexStream, exports: &[Export]) {
    let mut random = Random::new(seed);
    let kind = match random.below(20) {
        0..10 => Kind::Valid(Habit::Quick),
        10..12 => Kind::Valid(Habit::Slow),
        12..15 => Kind::Hostile,
        15..19 => Kind::Vanishing,
        _ => Kind::Greedy,
    };
    let pace = if let Kind::Valid(Habit::Slow) = kind { Pace::Slow } else { Pace::Any };
    let (receiver, sender) = tokio::io::split(stream);
    let mut client = Client {
        sender: Sender::new(sender, pace),
        receiver: Receiver::new(receiver, pace),
        exports,
    };
    match kind {
        Kind::Valid(habit) => {
            let done = client.converse(&mut random, habit).await;
            done.unwrap_or_else(|| panic!("the server hung up on a valid client"));
        }
        Kind::Vanishing => {
            // Dropped at whatever it waits for then.
            let life = Duration::from_micros(random.below(20_000));
            let _ = timeout(life, client.converse(&mut random, Habit::Quick)).await;
        }
        Kind::Hostile => client.attack(&mut random).await,
        Kind::Greedy => client.take_nothing(&mut random).await,
    }
}

struct Client<'a> {
    sender: Sender,
    receiver: Receiver,
    exports: &'a [Export],
}

impl Client<'_> {
    /// A whole session. `None` if the server hung up where it must not.
    async fn converse(&mut self, random: &mut Random, habit: Habit) -> Option<()> {
        assert_eq!(self.receiver.receive(18).await?, b"NBDMAGICIHAVEOPT\0\x03");
        let no_zeros = random.one_in(2);
        let flags: u32 = if no_zeros { 3 } else { 1 };
        let mut agreed = Agreed::nothing(no_zeros);
        if !self.sender.send(&flags.to_be_bytes(), random).await {
            return None;
        }
        let mut then = Then::MoreOptions;
        for _ in 0..30 {
            // Several at once: the answers come one after the other all the same.
            let mut exchanges = Vec::new();
            let mut bytes = Vec::new();
            for _ in 0..=random.below(3) {
                let exchange = agreed.any_option(random, self.exports);
                bytes.extend_from_slice(&exchange.bytes);
                then = exchange.then;
                exchanges.push(exchange);
                if then != Then::MoreOptions {
                    break;
                }
            }
            let (receiver, sender) = (&mut self.receiver, &mut self.sender);
            let answers = async {
                for exchange in &exchanges {
                    check_answer(exchange, receiver).await?;
                }
                Some(())
            };
            // What does not fit a refused option any more may be left unread.
            let (_, answered) = tokio::join!(sender.send(&bytes, random), answers);
            answered?;
            if then != Then::MoreOptions {
                break;
            }
        }
        match then {
            Then::MoreOptions | Then::HangUp => {
                self.sender.end().await;
                assert_eq!(self.receiver.rest().await, b"", "an answer that nobody asked for");
                return Some(());
            }
            Then::EnterOldStyle(number) => {
                let answer = agreed.old_style_answer(&self.exports[number]);
                assert_eq!(self.receiver.receive(answer.len()).await?, answer);
                self.transmit(random, habit, number, &agreed).await?;
            }
            Then::Enter(number) => self.transmit(random, habit, number, &agreed).await?,
        }
        Some(())
    }

    async fn transmit(
        &mut self,
        random: &mut Random,
        habit: Habit,
        number: usize,
        agreed: &Agreed,
    ) -> Option<()> {
        let export = &self.exports[number];
        let read_bytes_max = match habit {
            Habit::Quick => 100_000,
            Habit::Slow => 2000,
        };
        let (replies, contexts) = (agreed.replies, agreed.contexts(export.name));
        let terms = Terms { export, replies, contexts, read_bytes_max };
        let mut awaited = Awaited::new(export, replies);
        let mut cookie = random.number();
        for _ in 0..=random.below(4) {
            let mut bytes = Vec::new();
            for _ in 0..=random.below(12) {
                cookie = cookie.wrapping_add(1);
                let (request, asked) = terms.any_request(cookie, random);
                // Twice the same, cookie and all: not wise, and allowed.
                let times = if replies == Replies::Simple && random.one_in(10) { 2 } else { 1 };
                for _ in 0..times {
                    bytes.extend_from_slice(&request);
                    awaited.add(asked.clone());
                }
            }
            let (receiver, sender) = (&mut self.receiver, &mut self.sender);
            let answers = async {
                while !awaited.is_empty() {
                    awaited.receive(receiver).await?;
                }
                Some(())
            };
            let (sent, answered) = tokio::join!(sender.send(&bytes, random), answers);
            answered?;
            assert!(sent);
        }
        if random.one_in(2) {
            let goodbye = terms.header(0, DISC, cookie, 0, 0);
            assert!(self.sender.send(&goodbye, random).await);
        } else {
            self.sender.end().await;
        }
        assert_eq!(self.receiver.rest().await, b"", "a reply that nobody asked for");
        Some(())
    }

    /// What a valid client would send, damaged somewhere. The server may answer what it likes, but
    /// it must come to an end.
    async fn attack(&mut self, random: &mut Random) {
        let mut bytes = self.script(random);
        for _ in 0..random.below(4) {
            let at = random.below(bytes.len() as u64) as usize;
            match random.below(4) {
                0 => bytes[at] ^= 1 << random.below(8),
                1 => {
                    let length = random.below(100) as usize;
                    let noise = random.bytes(length);
                    bytes.splice(at..at, noise);
                }
                2 => bytes.truncate(at.max(1)),
                _ => bytes.splice(at..(at + 4).min(bytes.len()), [0xff; 4]).for_each(drop),
            }
        }
        let (receiver, sender) = (&mut self.receiver, &mut self.sender);
        let send = async {
            sender.send(&bytes, random).await;
            sender.end().await;
        };
        let ((), answer) = tokio::join!(send, receiver.rest());
        assert!(answer.starts_with(b"NBDMAGICIHAVEOPT\0\x03"));
    }

    /// All that a valid client would send, whatever it is answered.
    fn script(&self, random: &mut Random) -> Vec<u8> {
        let mut bytes = 3_u32.to_be_bytes().to_vec();
        let mut agreed = Agreed::nothing(true);
        let export = loop {
            let exchange = agreed.any_option(random, self.exports);
            bytes.extend_from_slice(&exchange.bytes);
            match exchange.then {
                Then::MoreOptions | Then::HangUp => {}
                Then::Enter(number) | Then::EnterOldStyle(number) => break &self.exports[number],
            }
        };
        let (replies, contexts) = (agreed.replies, agreed.contexts(export.name));
        let terms = Terms { export, replies, contexts, read_bytes_max: 10_000 };
        for cookie in 0..random.below(20) {
            bytes.extend_from_slice(&terms.any_request(cookie, random).0);
        }
        bytes
    }

    /// Goes when it has been stopped for long enough to be sure that nobody waits for it.
    async fn take_nothing(&mut self, random: &mut Random) {
        let export = random.pick(self.exports);
        let mut bytes = 3_u32.to_be_bytes().to_vec();
        bytes.extend_from_slice(&crate::support::client::option(
            7,
            &crate::support::client::query(export.name, &[]),
        ));
        let terms =
            Terms { export, replies: Replies::Simple, contexts: &[], read_bytes_max: 1 << 20 };
        for cookie in 0..1000 {
            bytes.extend_from_slice(&terms.header(0, 0, cookie, 0, export.size()));
        }
        let _ = timeout(Duration::from_millis(50), self.sender.send(&bytes, random)).await;
    }
}

async fn check_answer(exchange: &Exchange, receiver: &mut Receiver) -> Option<()> {
    for (code, payload) in &exchange.replies {
        assert_eq!(receiver.number(8).await?, 0x3_e889_0455_65a9);
        assert_eq!(receiver.number(4).await?, u64::from(exchange.code), "another option");
        let found = receiver.number(4).await? as u32;
        let length = receiver.number(4).await? as usize;
        let found_payload = receiver.receive(length).await?;
        let is_last = ![SERVER, INFO, META_CONTEXT].contains(code);
        assert_eq!(found, *code, "option {}, last: {is_last}", exchange.code);
        match payload {
            Payload::Exactly(expected) => assert_eq!(found_payload, *expected),
            Payload::Beginning(expected) => assert!(found_payload.starts_with(expected)),
            Payload::Sentence => {
                assert!(!std::str::from_utf8(&found_payload).unwrap().is_empty());
            }
        }
    }
    Some(())
}
