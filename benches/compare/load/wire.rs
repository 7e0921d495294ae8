//! Numbers of the NBD protocol, and requests as bytes.

pub(crate) const GREETING: &[u8; 16] = b"NBDMAGICIHAVEOPT";
pub(crate) const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(crate) const SIMPLE_MAGIC: u32 = 0x6744_6698;
pub(crate) const CHUNK_MAGIC: u32 = 0x668e_33ef;

pub(crate) const REQUEST_BYTES: usize = 28;
pub(crate) const SIMPLE_BYTES: usize = 16;
pub(crate) const CHUNK_BYTES: usize = 20;

/// Fixed newstyle, and no zeroes behind the answer to the oldest option.
pub(crate) const FLAGS: u32 = 3;

pub(crate) const OPTION_STARTTLS: u32 = 5;
pub(crate) const OPTION_GO: u32 = 7;
pub(crate) const OPTION_STRUCTURED: u32 = 8;

pub(crate) const REPLY_ACK: u32 = 1;
pub(crate) const REPLY_INFO: u32 = 3;
pub(crate) const REPLY_ERROR: u32 = 1 << 31;
pub(crate) const REPLY_UNSUPPORTED: u32 = REPLY_ERROR | 1;
pub(crate) const INFO_EXPORT: u16 = 0;

pub(crate) const COMMAND_READ: u16 = 0;
pub(crate) const COMMAND_DISCONNECT: u16 = 2;

pub(crate) const CHUNK_DONE: u16 = 1;
pub(crate) const CHUNK_NONE: u16 = 0;
pub(crate) const CHUNK_DATA: u16 = 1;
pub(crate) const CHUNK_HOLE: u16 = 2;

/// Appends a request.
pub(crate) fn request(out: &mut Vec<u8>, command: u16, cookie: u64, offset: u64, length: u32) {
    let mut bytes = [0; REQUEST_BYTES];
    bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    bytes[6..8].copy_from_slice(&command.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..].copy_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&bytes);
}

/// Appends an option.
pub(crate) fn option(out: &mut Vec<u8>, option: u32, payload: &[u8]) {
    out.extend_from_slice(OPTION_MAGIC);
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    out.extend_from_slice(payload);
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from(be16(bytes, at)) << 16 | u32::from(be16(bytes, at + 2))
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}
