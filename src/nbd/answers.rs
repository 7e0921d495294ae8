//! What options are answered with. Section "Option reply types".
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::nbd::limits::{DESCRIPTION_BYTES_MAX, NAME_BYTES_MAX, READ_BYTES_MAX, READ_BYTES_MIN};
use crate::nbd::option::{ExportQuery, Refusal};
use crate::nbd::reply::{cut, option_reply};
use crate::nbd::wire::{InfoCode, OptionCode, ReplyCode};
use crate::nbd::{Contexts, ExportInfo, Listing, Outbox};

/// Facts beyond size and flags that the client asked for.
pub(crate) struct Facts {
    name: bool,
    description: bool,
    block_size: bool,
}

impl From<&ExportQuery<'_>> for Facts {
    fn from(query: &ExportQuery<'_>) -> Self {
        Self {
            name: query.wants(InfoCode::NAME),
            description: query.wants(InfoCode::DESCRIPTION),
            block_size: query.wants(InfoCode::BLOCK_SIZE),
        }
    }
}

/// `NBD_REP_ACK`.
pub(crate) fn acknowledge(option: OptionCode, outbox: &mut Outbox) {
    reply(option, ReplyCode::ACK, &[], outbox);
}

/// An error, in words.
pub(crate) fn refuse(option: OptionCode, refusal: Refusal, outbox: &mut Outbox) {
    reply(option, refusal.code, &[refusal.message.as_bytes()], outbox);
}

/// `NBD_REP_SERVER` for each export.
pub(crate) fn list(listed: &[Listing], outbox: &mut Outbox) {
    for listing in listed {
        let name = cut(&listing.name, NAME_BYTES_MAX);
        let description = cut(&listing.description, DESCRIPTION_BYTES_MAX);
        let length = length_u32(name.as_bytes()).to_be_bytes();
        let parts = [&length[..], name.as_bytes(), description.as_bytes()];
        reply(OptionCode::LIST, ReplyCode::SERVER, &parts, outbox);
    }
    acknowledge(OptionCode::LIST, outbox);
}

/// `NBD_REP_META_CONTEXT` for each context: its number, which has no meaning in a mere list and
/// "SHOULD be set to zero" there, and its name.
pub(crate) fn list_contexts(
    option: OptionCode,
    info: &ExportInfo,
    contexts: Contexts,
    outbox: &mut Outbox,
) {
    for context in contexts.iter() {
        let name = info.contexts.get(context.place()).copied().unwrap_or_default();
        let id = if option == OptionCode::LIST_META_CONTEXT { 0 } else { context.wire_id() };
        let parts = [&id.to_be_bytes()[..], name.as_bytes()];
        reply(option, ReplyCode::META_CONTEXT, &parts, outbox);
    }
    acknowledge(option, outbox);
}

/// `NBD_REP_INFO` for each fact.
pub(crate) fn describe(
    option: OptionCode,
    info: &ExportInfo,
    transmission_flags: u16,
    facts: &Facts,
    outbox: &mut Outbox,
) {
    let mut fact = |code: InfoCode, parts: [&[u8]; 2]| {
        let [first, second] = parts;
        reply(option, ReplyCode::INFO, &[&code.0.to_be_bytes(), first, second], outbox);
    };
    let flags = transmission_flags.to_be_bytes();
    fact(InfoCode::EXPORT, [&info.size_bytes.to_be_bytes(), &flags]);
    if facts.name {
        fact(InfoCode::NAME, [cut(&info.name, NAME_BYTES_MAX).as_bytes(), &[]]);
    }
    if facts.description && !info.description.is_empty() {
        fact(InfoCode::DESCRIPTION, [cut(&info.description, NAME_BYTES_MAX).as_bytes(), &[]]);
    }
    if facts.block_size {
        let preferred = preferred_block_bytes(info.preferred_block_bytes);
        let sizes = [READ_BYTES_MIN, preferred, READ_BYTES_MAX].map(u32::to_be_bytes);
        fact(InfoCode::BLOCK_SIZE, [sizes.as_flattened(), &[]]);
    }
    acknowledge(option, outbox);
}

/// Section "Block size constraints": a power of two, at least 512.
fn preferred_block_bytes(wished: u32) -> u32 {
    wished.clamp(512, READ_BYTES_MAX).checked_next_power_of_two().unwrap_or(READ_BYTES_MAX)
}

fn reply(option: OptionCode, code: ReplyCode, payload: &[&[u8]], outbox: &mut Outbox) {
    let length = payload.iter().fold(0_u32, |sum, part| sum.saturating_add(length_u32(part)));
    outbox.push_copy(&option_reply(option, code, length));
    for part in payload {
        outbox.push_copy(part);
    }
}

/// Parts of replies are bounded by the limits above, far below 4 GiB.
fn length_u32(part: &[u8]) -> u32 {
    u32::try_from(part.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preferred_block_sizes_are_powers_of_two_within_the_protocols_bounds() {
        for (wished, preferred) in [
            (0, 512),
            (1, 512),
            (513, 1024),
            (65_536, 65_536),
            (65_537, 131_072),
            (32 << 20, 32 << 20),
            (u32::MAX, 32 << 20),
        ] {
            assert_eq!(preferred_block_bytes(wished), preferred);
        }
    }
}
