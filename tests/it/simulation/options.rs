//! Options that a client sends, legal or not, and what each must be answered with.

use crate::simulation::model::{CONTEXTS, Export, FILES};
use crate::simulation::random::Random;
use crate::support::client::{
    ACK, ERR_EXT_HEADER_REQD, ERR_INVALID, ERR_POLICY, ERR_TOO_BIG, ERR_UNKNOWN, ERR_UNSUP, INFO,
    META_CONTEXT, SERVER, option, query,
};

/// How requests are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replies {
    Simple,
    Structured,
    Extended,
}

/// What a client and the server have agreed on.
#[derive(Debug, Clone)]
pub(crate) struct Agreed {
    pub(crate) replies: Replies,
    /// Numbers of the chosen contexts, and the export that they were chosen for.
    contexts: Option<(&'static str, Vec<u32>)>,
    no_zeros: bool,
}

/// One option and its answer.
pub(crate) struct Exchange {
    pub(crate) code: u32,
    pub(crate) bytes: Vec<u8>,
    pub(crate) replies: Vec<(u32, Payload)>,
    pub(crate) then: Then,
}

/// What a reply must hold.
#[derive(Debug)]
pub(crate) enum Payload {
    Exactly(Vec<u8>),
    Beginning(Vec<u8>),
    Sentence,
}

/// How the session goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    MoreOptions,
    /// Transmission, of the export of that number.
    Enter(usize),
    /// The same, in the old way, without replies.
    EnterOldStyle(usize),
    HangUp,
}

impl Agreed {
    pub(crate) fn nothing(no_zeros: bool) -> Self {
        Self { replies: Replies::Simple, contexts: None, no_zeros }
    }

    /// The contexts that may be asked for, once that export is open.
    pub(crate) fn contexts(&self, export: &str) -> &[u32] {
        match &self.contexts {
            Some((of, ids)) if *of == export => ids,
            _ => &[],
        }
    }

    /// Transmission flags.
    fn flags(&self) -> u16 {
        let flags = 1 | 1 << 1 | 1 << 2 | 1 << 8 | 1 << 10;
        match self.replies {
            Replies::Simple => flags,
            Replies::Structured => flags | 1 << 7,
            Replies::Extended => flags | 1 << 7 | 1 << 12,
        }
    }

    /// What `EXPORT_NAME` is answered with.
    pub(crate) fn old_style_answer(&self, export: &Export) -> Vec<u8> {
        let mut answer = export.size().to_be_bytes().to_vec();
        answer.extend_from_slice(&self.flags().to_be_bytes());
        answer.resize(if self.no_zeros { 10 } else { 134 }, 0);
        answer
    }

    /// Whatever a client may think of, half of it wrong.
    pub(crate) fn any_option(&mut self, random: &mut Random, exports: &[Export]) -> Exchange {
        let number = random.below(exports.len() as u64) as usize;
        let name = if random.one_in(6) { "" } else { exports[number].name };
        let refused = |code, payload: &[u8], error| Exchange {
            code,
            bytes: option(code, payload),
            replies: vec![(error, Payload::Sentence)],
            then: Then::MoreOptions,
        };
        match random.below(20) {
            0 => Exchange {
                code: 3,
                bytes: option(3, b""),
                replies: FILES.iter().map(listed).chain([ack()]).collect(),
                then: Then::MoreOptions,
            },
            1 => refused(3, b"x", ERR_INVALID),
            2 | 3 => self.describe(6, random, exports, number, name),
            4 => refused(*random.pick(&[6, 7]), &query("nothing", &[1]), ERR_UNKNOWN),
            5 | 6 => self.structured(random.one_in(4)),
            7 if random.one_in(2) => self.extended(random.one_in(4)),
            8 => self.contexts_option(9, random, name),
            9..12 => self.contexts_option(10, random, name),
            12 => {
                let code = 12 + random.below(1 << 31) as u32;
                let length = random.below(100) as usize;
                refused(code, &random.bytes(length), ERR_UNSUP)
            }
            13 => refused(5, b"", ERR_POLICY),
            14 => {
                let length = 16 * 1024 + 1 + random.below(40_000) as usize;
                let code = *random.pick(&[3, 6, 7, 8, 9, 10, 11, 99]);
                if code == 10 {
                    self.contexts = None;
                }
                refused(code, &vec![0; length], ERR_TOO_BIG)
            }
            15 => {
                let lies =
                    [&b""[..], &[0; 5], &[255; 6], b"\0\0\0\x09disk\0\0", b"\0\0\0\x01\xff\0\0"];
                let lie = random.pick(&lies);
                refused(*random.pick(&[6, 7]), lie, ERR_INVALID)
            }
            16 if random.one_in(10) => Exchange {
                code: 2,
                bytes: option(2, b""),
                replies: vec![ack()],
                then: Then::HangUp,
            },
            17 if random.one_in(10) => self.old_style(random, number, name),
            18 if random.one_in(10) => {
                let mut bytes = option(6, b"");
                bytes[12..16]
                    .copy_from_slice(&(65_537 + random.below(1 << 31) as u32).to_be_bytes());
                let replies = vec![(ERR_TOO_BIG, Payload::Sentence)];
                Exchange { code: 6, bytes, replies, then: Then::HangUp }
            }
            _ => {
                let mut exchange = self.describe(7, random, exports, number, name);
                exchange.then = Then::Enter(if name.is_empty() { DEFAULT } else { number });
                exchange
            }
        }
    }

    fn describe(
        &self,
        code: u32,
        random: &mut Random,
        exports: &[Export],
        number: usize,
        name: &str,
    ) -> Exchange {
        let export = &exports[if name.is_empty() { DEFAULT } else { number }];
        let facts: Vec<u16> =
            (0..random.below(4)).map(|_| *random.pick(&[0, 1, 2, 3, 77])).collect();
        let mut size = b"\0\0".to_vec();
        size.extend_from_slice(&export.size().to_be_bytes());
        size.extend_from_slice(&self.flags().to_be_bytes());
        let mut replies = vec![(INFO, Payload::Exactly(size))];
        let file = FILES.iter().find(|(name, _)| *name == export.name).unwrap().1;
        let texts = [(1_u16, export.name.to_owned()), (2, format!("from {file}"))];
        for (fact, text) in texts {
            if facts.contains(&fact) {
                let payload = [&fact.to_be_bytes(), text.as_bytes()].concat();
                replies.push((INFO, Payload::Exactly(payload)));
            }
        }
        if facts.contains(&3) {
            // The preferred size depends on the file.
            replies.push((INFO, Payload::Beginning(b"\0\x03\0\0\0\x01".to_vec())));
        }
        replies.push(ack());
        Exchange {
            code,
            bytes: option(code, &query(name, &facts)),
            replies,
            then: Then::MoreOptions,
        }
    }

    fn structured(&mut self, with_payload: bool) -> Exchange {
        let answer = match self.replies {
            _ if with_payload => ERR_INVALID,
            Replies::Extended => ERR_EXT_HEADER_REQD,
            Replies::Simple | Replies::Structured => {
                self.replies = Replies::Structured;
                ACK
            }
        };
        self.short(8, with_payload, answer)
    }

    fn extended(&mut self, with_payload: bool) -> Exchange {
        let answer = match self.replies {
            _ if with_payload => ERR_INVALID,
            Replies::Extended => ERR_INVALID,
            Replies::Simple | Replies::Structured => {
                self.replies = Replies::Extended;
                ACK
            }
        };
        self.short(11, with_payload, answer)
    }

    fn short(&self, code: u32, with_payload: bool, answer: u32) -> Exchange {
        let bytes = option(code, if with_payload { b"x" } else { b"" });
        let payload = if answer == ACK { Payload::Exactly(vec![]) } else { Payload::Sentence };
        Exchange { code, bytes, replies: vec![(answer, payload)], then: Then::MoreOptions }
    }

    fn contexts_option(&mut self, code: u32, random: &mut Random, name: &str) -> Exchange {
        let known = ["base:", "hexz:", "base:allocation", "hexz:shared", "qemu:", "", "hexz:share"];
        let queries: Vec<&str> = (0..random.below(4)).map(|_| *random.pick(&known)).collect();
        let export = if random.one_in(8) { "nothing" } else { name };
        let mut payload = (export.len() as u32).to_be_bytes().to_vec();
        payload.extend_from_slice(export.as_bytes());
        payload.extend_from_slice(&(queries.len() as u32).to_be_bytes());
        for query in &queries {
            payload.extend_from_slice(&(query.len() as u32).to_be_bytes());
            payload.extend_from_slice(query.as_bytes());
        }
        let is_list = code == 9;
        let asked_for = |context: &str| {
            let all = is_list && queries.is_empty();
            let by_namespace =
                |query: &&str| is_list && query.ends_with(':') && context.starts_with(*query);
            all || queries.contains(&context) || queries.iter().any(by_namespace)
        };
        if !is_list {
            self.contexts = None;
        }
        let replies = if !is_list && self.replies == Replies::Simple {
            vec![(ERR_INVALID, Payload::Sentence)]
        } else if export == "nothing" {
            vec![(ERR_UNKNOWN, Payload::Sentence)]
        } else {
            let ids: Vec<u32> =
                (1..).zip(CONTEXTS).filter(|(_, name)| asked_for(name)).map(|(id, _)| id).collect();
            let context = |id: &u32| {
                let name = CONTEXTS[*id as usize - 1];
                // "reserved and SHOULD be set to zero" in a mere list.
                let id = if is_list { 0 } else { *id };
                let payload = [&id.to_be_bytes()[..], name.as_bytes()].concat();
                (META_CONTEXT, Payload::Exactly(payload))
            };
            let replies = ids.iter().map(context).chain([ack()]).collect();
            if !is_list {
                let export = if export.is_empty() { FILES[DEFAULT].0 } else { export };
                let export = FILES.iter().find(|(name, _)| *name == export).unwrap().0;
                self.contexts = Some((export, ids));
            }
            replies
        };
        Exchange { code, bytes: option(code, &payload), replies, then: Then::MoreOptions }
    }

    fn old_style(&self, random: &mut Random, number: usize, name: &str) -> Exchange {
        let (name, then) = match self.replies {
            Replies::Extended => (name, Then::HangUp),
            _ if random.one_in(4) => ("nothing", Then::HangUp),
            _ => (name, Then::EnterOldStyle(if name.is_empty() { DEFAULT } else { number })),
        };
        Exchange { code: 1, bytes: option(1, name.as_bytes()), replies: vec![], then }
    }
}

/// The place of `disk`, which is the default export.
const DEFAULT: usize = 1;

fn ack() -> (u32, Payload) {
    (ACK, Payload::Exactly(vec![]))
}

fn listed((name, file): &(&str, &str)) -> (u32, Payload) {
    let mut payload = (name.len() as u32).to_be_bytes().to_vec();
    payload.extend_from_slice(name.as_bytes());
    payload.extend_from_slice(format!("from {file}").as_bytes());
    (SERVER, Payload::Exactly(payload))
}
