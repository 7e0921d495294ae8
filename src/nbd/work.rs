//! What a client waits for, and how it can fail.

use crate::nbd::chunks::Fragments;
use crate::nbd::reply::ReplyTo;
use crate::nbd::wire::Errno;
use crate::nbd::{Contexts, Piece};

/// Something that the client waits for. Neither cloned nor made elsewhere, so each is answered
/// once.
#[derive(Debug)]
pub enum Work {
    /// Bytes. Answer with [`Transmission::reply`](crate::nbd::Transmission::reply).
    Read(Read),
    /// That bytes can be read. Answer with [`Transmission::loaded`](crate::nbd::Transmission::loaded).
    Load(Load),
    /// Extents. Answer with [`Transmission::describe`](crate::nbd::Transmission::describe).
    Status(Status),
}

/// A read, or a part of one. All of it is in the export.
#[derive(Debug)]
pub struct Read {
    /// First byte of the export.
    pub offset: u64,
    /// Number of bytes, at most [`PART_BYTES`](crate::nbd::limits::PART_BYTES).
    pub length: u32,
    pub(in crate::nbd) answer: Answer,
}

/// What becomes of the bytes of a read.
#[derive(Debug)]
pub(in crate::nbd) enum Answer {
    Whole(ReplyTo, Fragments),
    Part,
}

/// Bytes that are to be fetched and checked, and not sent. All of them are in the export.
#[derive(Debug)]
#[expect(
    clippy::manual_non_exhaustive,
    reason = "other modules of this crate must not make one either"
)]
pub struct Load {
    /// First byte of the export.
    pub offset: u64,
    /// Number of bytes, at most [`PART_BYTES`](crate::nbd::limits::PART_BYTES).
    pub length: u32,
    /// Keeps others from making one.
    pub(in crate::nbd) sealed: (),
}

/// A question about extents. All of the range is in the export.
#[derive(Debug)]
pub struct Status {
    /// First byte of the export.
    pub offset: u64,
    /// Number of bytes. Not 0.
    pub length: u64,
    /// What is asked. Each must be answered.
    pub contexts: Contexts,
    /// Most extents that are wanted for each context.
    pub extents_max: usize,
    pub(in crate::nbd) to: ReplyTo,
}

/// Why something cannot be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// What went wrong.
    pub error: Errno,
    /// The same, for the person at the client. It says nothing of the server's own files.
    pub message: &'static str,
    /// Where in the export, if that is known.
    pub position: Option<u64>,
    /// Whether bytes are there and wrong, rather than out of reach.
    pub is_damage: bool,
}

/// Why a read has not all its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadFailure {
    /// The bytes that come before those that cannot be read.
    pub before: Vec<Piece>,
    /// What went wrong.
    pub error: Errno,
    /// The same, for the person at the client. It says nothing of the server's own files.
    pub message: &'static str,
    /// Whether bytes are there and wrong, rather than out of reach.
    pub is_damage: bool,
}
