//! Bounds on what one client may send and be owed.

/// Longest name, description or message, in bytes. Section "Conventions": strings are no longer.
pub const NAME_BYTES_MAX: usize = 4096;

/// Longest description in a list, in bytes. nbd-client 3.24 reads one into a buffer of 1024.
pub const DESCRIPTION_BYTES_MAX: usize = 1000;

/// Largest option payload that is looked at, in bytes.
///
/// The longest legal option names an export (4096 bytes of UTF-8) and a handful of information
/// requests. What is longer is refused.
pub const OPTION_PAYLOAD_BYTES_MAX: u32 = 16 * 1024;

/// Largest option payload that is skipped so that the session can go on, in bytes. Beyond it the
/// client is not worth the reading.
pub const OPTION_SKIPPED_BYTES_MAX: u32 = 64 * 1024;

/// Most options of one client. Real clients send fewer than ten.
pub const OPTIONS_MAX: u32 = 1000;

/// Largest read, in bytes, as advertised. Section "Block size constraints": clients that do not
/// ask may assume that 32 MiB are allowed.
pub const READ_BYTES_MAX: u32 = 32 << 20;

/// Smallest read, in bytes, as advertised.
pub const READ_BYTES_MIN: u32 = 1;

/// Bytes that one client may have asked for and not taken yet before its next request is looked
/// at, where nothing else was set.
///
/// Enough for the readers that ask for most at once: 64 requests of 256 KiB from nbdcopy, 128 of
/// 128 KiB from the kernel.
pub const OWED_BYTES_MAX: u64 = 16 << 20;

/// Longer reads are answered in parts of so many bytes, so that none is ever in memory as a whole.
/// A client may always have one part on its way, whatever others have taken.
pub const PART_BYTES: u32 = 256 * 1024;

/// How far the parts of a long read are fetched ahead of what the client has taken, in bytes.
pub const PARTS_AHEAD_BYTES: u64 = 4 << 20;

/// Most extents that describe one range in one metadata context. What lies behind is not described
/// then, and the client asks again.
pub const EXTENTS_MAX: usize = 4096;

/// Bytes of one `CACHE` that are really fetched. The rest is left: the command is advice, and costs
/// whoever gives it nothing.
pub const PREFETCH_BYTES_MAX: u64 = 32 << 20;
