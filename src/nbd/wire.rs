//! Every number of the NBD wire format, grouped as in the protocol document (`doc/proto.md` of
//! the NBD project). All integers are big-endian.

use std::fmt;

/// First eight bytes from the server: ASCII `NBDMAGIC`. Section "Newstyle negotiation".
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;

/// Before the handshake flags and before every option: ASCII `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;

/// Before every reply to an option. Section "Fixed newstyle negotiation".
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Before every request. Section "Request message".
pub const REQUEST_MAGIC: u32 = 0x2560_9513;

/// Before every request once extended headers are negotiated. Section "Extended request message" of
/// the extension `extension-ext-header`, as qemu and libnbd speak it.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;

/// Before every simple reply. Section "Simple reply message".
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

/// Before every chunk of a structured reply. Section "Structured reply chunk message".
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Before every chunk once extended headers are negotiated.
pub const EXTENDED_CHUNK_MAGIC: u32 = 0x6e8a_278c;

/// Length of the client's flags, in bytes.
pub const CLIENT_FLAGS_BYTES: usize = 4;

/// Length of the header of an option, in bytes.
pub const OPTION_HEADER_BYTES: usize = 16;

/// Length of the header of a reply to an option, in bytes.
pub const OPTION_REPLY_HEADER_BYTES: usize = 20;

/// Length of a request, in bytes.
pub const REQUEST_BYTES: usize = 28;

/// Length of a request with an extended header, in bytes.
pub const EXTENDED_REQUEST_BYTES: usize = 32;

/// Length of a simple reply, in bytes.
pub const SIMPLE_REPLY_BYTES: usize = 16;

/// Length of the header of a chunk, in bytes. Its payload follows.
pub const CHUNK_HEADER_BYTES: usize = 20;

/// Length of an extended header of a chunk, in bytes. Its payload follows.
pub const EXTENDED_CHUNK_HEADER_BYTES: usize = 32;

/// Zeros after the answer to `EXPORT_NAME`, in bytes, unless the client does without.
pub const RESERVED_ZEROS_BYTES: usize = 124;

/// Declares a number of the wire as a type of its own. A value that has no name is kept as it is,
/// since it must be echoed to the client or written to the log.
macro_rules! wire_codes {
    ($(
        $(#[$documentation:meta])*
        $name:ident($number:ty) { $( $(#[$line:meta])* $code:ident = $value:expr, )* }
    )*) => { $(
        $(#[$documentation])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $name(pub $number);

        impl $name {
            $( $(#[$line])* pub const $code: Self = Self($value); )*
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {
                    $( Self::$code => f.write_str(stringify!($code)), )*
                    Self(unknown) => write!(f, "{}({unknown:#x})", stringify!($name)),
                }
            }
        }
    )* };
}

wire_codes! {
    /// What a client asks for while haggling. Section "Option types".
    OptionCode(u32) {
        /// Open an export without any chance of an error message.
        EXPORT_NAME = 1,
        /// End the session before transmission.
        ABORT = 2,
        /// List the exports.
        LIST = 3,
        /// Upgrade to TLS.
        STARTTLS = 5,
        /// Describe an export.
        INFO = 6,
        /// Open an export and enter transmission.
        GO = 7,
        /// Replies in chunks from now on.
        STRUCTURED_REPLY = 8,
        /// List the metadata contexts of an export.
        LIST_META_CONTEXT = 9,
        /// Choose metadata contexts of an export.
        SET_META_CONTEXT = 10,
        /// Requests and chunks with lengths of 64 bits from now on.
        EXTENDED_HEADERS = 11,
    }

    /// What the server answers to an option. Section "Option reply types". Errors have the
    /// highest bit set and may carry a sentence for people.
    ReplyCode(u32) {
        /// Done.
        ACK = 1,
        /// One export of a list.
        SERVER = 2,
        /// One fact about an export.
        INFO = 3,
        /// One metadata context.
        META_CONTEXT = 4,
        /// The server does not know the option.
        ERR_UNSUP = 1 << 31 | 1,
        /// The server knows the option and does not allow it.
        ERR_POLICY = 1 << 31 | 2,
        /// The option is malformed.
        ERR_INVALID = 1 << 31 | 3,
        /// TLS is needed first.
        ERR_TLS_REQD = 1 << 31 | 5,
        /// There is no such export.
        ERR_UNKNOWN = 1 << 31 | 6,
        /// The server is shutting down.
        ERR_SHUTDOWN = 1 << 31 | 7,
        /// The option is too long.
        ERR_TOO_BIG = 1 << 31 | 9,
        /// Extended headers are negotiated, and the option makes no sense with them.
        ERR_EXT_HEADER_REQD = 1 << 31 | 10,
    }

    /// Which fact about an export. Section "Option reply types", `NBD_REP_INFO`.
    InfoCode(u16) {
        /// Size and transmission flags.
        EXPORT = 0,
        /// The name by which the server knows the export.
        NAME = 1,
        /// A line for people.
        DESCRIPTION = 2,
        /// Smallest, preferred and largest request.
        BLOCK_SIZE = 3,
    }

    /// What a request asks for. Section "Request types".
    Command(u16) {
        /// Read bytes.
        READ = 0,
        /// Write bytes, which follow the request.
        WRITE = 1,
        /// End the session.
        DISC = 2,
        /// Make written bytes durable.
        FLUSH = 3,
        /// Give up bytes.
        TRIM = 4,
        /// Make bytes that are read soon quick to read.
        CACHE = 5,
        /// Write zeros.
        WRITE_ZEROES = 6,
        /// Describe a range of the export.
        BLOCK_STATUS = 7,
    }

    /// What a chunk holds. Section "Structured reply types". Errors have the highest bit set.
    ChunkType(u16) {
        /// Nothing: the request is answered.
        NONE = 0,
        /// Bytes of the export, and where they lie.
        OFFSET_DATA = 1,
        /// Where zeros lie, and how many.
        OFFSET_HOLE = 2,
        /// Extents of a metadata context, with lengths of 32 bits.
        BLOCK_STATUS = 5,
        /// The same with lengths of 64 bits. Only with extended headers.
        BLOCK_STATUS_EXT = 6,
        /// What went wrong, in words.
        ERROR = 1 << 15 | 1,
        /// The same, and where.
        ERROR_OFFSET = 1 << 15 | 2,
    }

    /// What went wrong with a request. Section "Error values".
    Errno(u32) {
        /// Writing is not permitted.
        EPERM = 1,
        /// The bytes cannot be read.
        EIO = 5,
        /// The request makes no sense.
        EINVAL = 22,
        /// The server is shutting down.
        ESHUTDOWN = 108,
    }
}

impl ReplyCode {
    /// Whether it says that the option failed.
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.0 >> 31 == 1
    }
}

/// Bits of the server's handshake flags. Section "Handshake flags".
pub mod handshake_flags {
    /// Options may fail without ending the session.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// The server can leave out the zeros after `EXPORT_NAME`.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Bits of the client's flags. Section "Client flags".
pub mod client_flags {
    /// The client understands replies to options.
    pub const FIXED_NEWSTYLE: u32 = 1 << 0;
    /// The client does not want the zeros after `EXPORT_NAME`.
    pub const NO_ZEROES: u32 = 1 << 1;
}

/// Bits that describe an export. Section "Transmission flags".
pub mod transmission_flags {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Writing fails.
    pub const READ_ONLY: u16 = 1 << 1;
    /// `FLUSH` is understood.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// A read may ask for a reply in one piece. Only with structured replies.
    pub const SEND_DF: u16 = 1 << 7;
    /// Several connections see the same bytes.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// `CACHE` is understood.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// A `BLOCK_STATUS` may name the contexts it is about. Only with extended headers.
    pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// Bits of a request. Section "Command flags".
pub mod command_flags {
    /// Do not fragment: answer with one chunk of bytes at most.
    pub const DF: u16 = 1 << 2;
    /// Describe one extent only, no longer than what was asked for.
    pub const REQ_ONE: u16 = 1 << 3;
    /// As many bytes as the length says follow the request. Only with extended headers.
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Bits of a chunk. Section "Structured reply flags".
pub mod chunk_flags {
    /// The last chunk of a reply.
    pub const DONE: u16 = 1 << 0;
}

/// Bits of an extent of the context `base:allocation`. Section "`base:allocation` metadata context".
pub mod allocation_state {
    /// Nothing is stored for these bytes.
    pub const HOLE: u32 = 1 << 0;
    /// These bytes read as zeros.
    pub const ZERO: u32 = 1 << 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_numbers_print_their_names_and_unknown_ones_survive() {
        assert_eq!(format!("{:?}", OptionCode::GO), "GO");
        assert_eq!(format!("{:?}", OptionCode(0x99)), "OptionCode(0x99)");
        assert_eq!(ReplyCode::ERR_UNKNOWN.0, 0x8000_0006);
        assert!(ReplyCode::ERR_UNKNOWN.is_error() && !ReplyCode::INFO.is_error());
    }

    #[test]
    fn magics_are_the_letters_of_the_protocol_document() {
        assert_eq!(&INIT_MAGIC.to_be_bytes(), b"NBDMAGIC");
        assert_eq!(&OPTION_MAGIC.to_be_bytes(), b"IHAVEOPT");
    }
}
