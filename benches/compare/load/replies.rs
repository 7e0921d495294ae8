//! Replies, as they come in: each header is checked, and data is counted where it lies.

use std::io;

use crate::wire;

/// The requests of one connection that wait for a reply. A cookie is the index of a slot.
pub(crate) struct Replies {
    slots: Vec<Slot>,
    structured: bool,
    /// A header that is not complete.
    header: [u8; HEADER_BYTES_MAX],
    held: usize,
    wanted: usize,
    /// Data that is still to come.
    current: Data,
    done: Vec<usize>,
}

const HEADER_BYTES_MAX: usize = wire::CHUNK_BYTES + 12;

#[derive(Clone, Copy, Default)]
struct Slot {
    offset: u64,
    /// Zero for a slot that is free.
    length: u32,
    received: u32,
}

#[derive(Clone, Copy, Default)]
struct Data {
    slot: usize,
    /// Where it is in the data of the slot.
    position: u32,
    left: u32,
    is_last: bool,
}

impl Replies {
    pub(crate) fn new(queue: usize, structured: bool) -> Self {
        let wanted = if structured { wire::CHUNK_BYTES } else { wire::SIMPLE_BYTES };
        Self {
            slots: vec![Slot::default(); queue],
            structured,
            header: [0; HEADER_BYTES_MAX],
            held: 0,
            wanted,
            current: Data::default(),
            done: Vec::with_capacity(queue),
        }
    }

    /// Appends the request for a read, of which the reply is expected from now on.
    pub(crate) fn ask(&mut self, slot: usize, offset: u64, length: u32, out: &mut Vec<u8>) {
        self.slots[slot] = Slot { offset, length, received: 0 };
        wire::request(out, wire::COMMAND_READ, slot as u64, offset, length);
    }

    /// Moves the slots that were answered since the last call to the end of `free`.
    pub(crate) fn take_done(&mut self, free: &mut Vec<usize>) {
        free.append(&mut self.done);
    }

    /// Takes what was received. `sink` gets the data: its slot, where it is in the data of the
    /// slot, and bytes.
    pub(crate) fn feed(
        &mut self,
        mut bytes: &[u8],
        mut sink: impl FnMut(usize, u32, &[u8]),
    ) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.current.left > 0 {
                let count = bytes.len().min(self.current.left as usize);
                let (data, rest) = bytes.split_at(count);
                sink(self.current.slot, self.current.position, data);
                bytes = rest;
                self.current.position += count as u32;
                self.current.left -= count as u32;
                if self.current.left == 0 && self.current.is_last {
                    self.finish(self.current.slot)?;
                }
                continue;
            }
            let count = bytes.len().min(self.wanted - self.held);
            let (part, rest) = bytes.split_at(count);
            self.header[self.held..self.held + count].copy_from_slice(part);
            self.held += count;
            bytes = rest;
            if self.held == self.wanted {
                if self.structured { self.on_chunk() } else { self.on_simple() }?;
            }
        }
        Ok(())
    }

    fn on_simple(&mut self) -> io::Result<()> {
        let error = wire::be32(&self.header, 4);
        if wire::be32(&self.header, 0) != wire::SIMPLE_MAGIC || error != 0 {
            return Err(self.broken(format_args!("a simple reply, error {error}")));
        }
        let slot = self.slot(wire::be64(&self.header, 8))?;
        self.held = 0;
        self.begin(Data { slot, position: 0, left: self.slots[slot].length, is_last: true })
    }

    fn on_chunk(&mut self) -> io::Result<()> {
        let (flags, kind) = (wire::be16(&self.header, 4), wire::be16(&self.header, 6));
        if wire::be32(&self.header, 0) != wire::CHUNK_MAGIC {
            return Err(self.broken("a structured reply"));
        }
        let slot = self.slot(wire::be64(&self.header, 8))?;
        let length = wire::be32(&self.header, 16);
        let is_last = flags & wire::CHUNK_DONE != 0;
        let wanted = match (kind, length) {
            (wire::CHUNK_NONE, 0) if is_last => wire::CHUNK_BYTES,
            (wire::CHUNK_DATA, 9..) => wire::CHUNK_BYTES + 8,
            (wire::CHUNK_HOLE, 12) => wire::CHUNK_BYTES + 12,
            _ => return Err(self.broken(format_args!("a chunk of type {kind}, {length} bytes"))),
        };
        if self.held < wanted {
            self.wanted = wanted;
            return Ok(());
        }
        (self.held, self.wanted) = (0, wire::CHUNK_BYTES);
        if kind == wire::CHUNK_NONE {
            return self.finish(slot);
        }
        let asked = self.slots[slot];
        let position = wire::be64(&self.header, wire::CHUNK_BYTES).checked_sub(asked.offset);
        let Some(position) = position.filter(|at| *at < u64::from(asked.length)) else {
            return Err(self.broken("a chunk of other data"));
        };
        if kind == wire::CHUNK_HOLE {
            self.slots[slot].received += wire::be32(&self.header, wire::CHUNK_BYTES + 8);
            return if is_last { self.finish(slot) } else { Ok(()) };
        }
        self.begin(Data { slot, position: position as u32, left: length - 8, is_last })
    }

    fn begin(&mut self, data: Data) -> io::Result<()> {
        let slot = &mut self.slots[data.slot];
        slot.received = slot.received.saturating_add(data.left);
        if slot.received > slot.length {
            return Err(self.broken("more data than was asked for"));
        }
        self.current = data;
        Ok(())
    }

    fn finish(&mut self, slot: usize) -> io::Result<()> {
        if self.slots[slot].received != self.slots[slot].length {
            return Err(self.broken("less data than was asked for"));
        }
        self.slots[slot].length = 0;
        self.done.push(slot);
        Ok(())
    }

    fn slot(&self, cookie: u64) -> io::Result<usize> {
        usize::try_from(cookie)
            .ok()
            .filter(|slot| self.slots.get(*slot).is_some_and(|slot| slot.length > 0))
            .ok_or_else(|| self.broken(format_args!("a reply to cookie {cookie}, not asked")))
    }

    #[cold]
    fn broken(&self, what: impl std::fmt::Display) -> io::Error {
        io::Error::other(format!("{what}: {:02x?}", &self.header[..self.wanted]))
    }
}
