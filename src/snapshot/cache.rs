//! Decoded blocks and index pages of all snapshots of the process, bounded in bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quick_cache::sync::{Cache as QuickCache, GuardResult};
use quick_cache::{DefaultHashBuilder, Lifecycle, OptionsBuilder, Weighter};

use crate::snapshot::format::Stream;
use crate::snapshot::page::Page;
use crate::snapshot::read::Pattern;
use crate::snapshot::rooms::{Room, Rooms, room_bytes};
use crate::snapshot::seen::Seen;

/// Size of the cache where nothing else was asked for, in bytes.
pub const CACHE_BYTES_DEFAULT: u64 = 256 << 20;

/// Share of the cache that index pages may take: 24 bytes describe a block of tens of kilobytes.
const PAGES_SHARE: u64 = 8;

/// Bytes of bookkeeping for an entry, beside what it holds.
const ENTRY_OVERHEAD_BYTES: u64 = 128;

/// Share of the cache for long blocks that were read once, or are read ahead and wait for their reader.
const NEWCOMERS_SHARE: u64 = 8;

/// But no more than that, in bytes: memory that is used again and again, in place of new one for each
/// block of a disk that is copied once. Each page of that costs more than to decode what goes there.
const NEWCOMERS_BYTES_MAX: u64 = 16 << 20;

/// Shorter blocks are kept at once, in bytes.
const NEWCOMER_BYTES_MIN: u32 = 16 * 1024;

/// Newcomers of which there cannot be so many are kept at once.
const NEWCOMERS_MIN: u64 = 8;

/// The longest newcomer must fit there, and nothing comes there but the first that are met.
const NEWCOMERS_HOT_SHARE: f64 = 0.15;

/// Share of what was used since it is kept. The rest is for what was not yet: by default a thirtieth, from
/// which it is driven out before it comes to that.
const HOT_SHARE: f64 = 0.75;

/// Bytes of one shard at least: an entry that outweighs its shard is not kept at all.
const SHARD_BYTES_MIN: u64 = 32 << 20;

const SHARDS_MAX: u64 = 64;

/// One cache for the whole process. Whoever misses first fetches; who comes meanwhile waits for
/// that one fetch.
///
/// A long block is kept when it is wanted for the second time. Until then it is a newcomer, for which there
/// is little room: so who copies a disk neither drives out what others use nor makes the process grow.
#[derive(Debug)]
pub struct Cache {
    blocks: Bounded<BlockKey, Bytes>,
    newcomers: Bounded<BlockKey, Bytes>,
    newcomers_bytes: u64,
    /// Newcomers that were there, and perhaps are.
    seen: Seen,
    pages: Bounded<PageKey, Arc<Page>>,
    rooms: Rooms,
    capacity_bytes: u64,
    hits: AtomicU64,
    misses: AtomicU64,
    evictions: Arc<AtomicU64>,
}

type Bounded<K, V> = QuickCache<K, V, Weigh, DefaultHashBuilder, Evictions>;

/// How the cache is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statistics {
    /// What it holds now, in bytes.
    pub used_bytes: u64,
    /// What it may hold, in bytes.
    pub capacity_bytes: u64,
    /// Blocks that were taken from it. One counts each time that a read needs it.
    pub hits: u64,
    /// Blocks that were fetched and decoded because it did not have them.
    pub misses: u64,
    /// Blocks and index pages that made room for others.
    pub evictions: u64,
}

/// Counts what makes room.
#[derive(Debug, Clone)]
struct Evictions(Arc<AtomicU64>);

impl<K, V> Lifecycle<K, V> for Evictions {
    type RequestState = ();

    fn on_evict(&self, (): &mut (), _: K, _: V) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Where a stored block lies, so that deduplicated blocks share an entry. All that decides what
/// becomes of the stored bytes is part of the key; in encrypted snapshots that is the number too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct BlockKey {
    pub(crate) file: FileId,
    pub(crate) offset: u64,
    pub(crate) length: u32,
    pub(crate) logical_length: u32,
    pub(crate) crc: u32,
    /// 0 unless the number of the block is needed to decode it.
    pub(crate) number: u64,
}

/// Number of a page in a stream of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PageKey {
    pub(crate) file: FileId,
    pub(crate) stream: Stream,
    pub(crate) page: usize,
}

/// Tells opened files apart. Never used twice in a process, so what was cached for a file that is
/// gone is not found again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FileId(u64);

impl FileId {
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

#[derive(Debug, Clone)]
struct Weigh;

impl Weighter<BlockKey, Bytes> for Weigh {
    fn weight(&self, _key: &BlockKey, block: &Bytes) -> u64 {
        (room_bytes(block.len()) as u64).saturating_add(ENTRY_OVERHEAD_BYTES)
    }
}

impl Weighter<PageKey, Arc<Page>> for Weigh {
    fn weight(&self, _key: &PageKey, page: &Arc<Page>) -> u64 {
        page.memory_bytes().saturating_add(ENTRY_OVERHEAD_BYTES)
    }
}

impl Cache {
    /// A cache that keeps at most `capacity_bytes`, index pages included. With 0 nothing is kept.
    #[must_use]
    pub fn new(capacity_bytes: u64) -> Self {
        let pages = capacity_bytes / PAGES_SHARE;
        let newcomers = (capacity_bytes / NEWCOMERS_SHARE).min(NEWCOMERS_BYTES_MAX);
        let kept = capacity_bytes.saturating_sub(pages).saturating_sub(newcomers);
        let evictions = Arc::new(AtomicU64::new(0));
        Self {
            blocks: bounded(kept, 32 * 1024, HOT_SHARE, &evictions),
            newcomers: bounded(newcomers, 64 * 1024, NEWCOMERS_HOT_SHARE, &evictions),
            newcomers_bytes: newcomers,
            seen: Seen::beside(capacity_bytes),
            pages: bounded(pages, 64 * 1024, HOT_SHARE, &evictions),
            rooms: Rooms::default(),
            capacity_bytes,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            evictions,
        }
    }

    /// How it is used.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        Statistics {
            used_bytes: self.used_bytes(),
            capacity_bytes: self.capacity_bytes,
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            evictions: self.evictions.load(Ordering::Relaxed),
        }
    }

    /// How far all readers together may be read ahead of, in bytes: more would drive out what was read ahead
    /// before its reader comes.
    #[must_use]
    pub fn ahead_bytes_max(&self) -> u64 {
        self.newcomers_bytes / 2
    }

    /// Bytes that the cache holds now, its bookkeeping included.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        [self.blocks.weight(), self.newcomers.weight(), self.pages.weight()]
            .into_iter()
            .fold(0, u64::saturating_add)
    }

    /// Memory for a block of so many bytes.
    pub(crate) fn room(&self, bytes: u32) -> Room {
        self.rooms.take(bytes as usize)
    }

    /// The block, if it is there. Whoever makes use of it says so: [`Cache::has_served`].
    pub(crate) fn block(&self, key: &BlockKey, pattern: Pattern) -> Option<Bytes> {
        let kept = match pattern {
            Pattern::Random | Pattern::Announced => self.blocks.get(key),
            Pattern::Sequential => self.blocks.peek(key),
        };
        if kept.is_some() || !self.begins_as_newcomer(key) {
            return kept;
        }
        let block = self.newcomers.peek(key)?;
        if pattern != Pattern::Sequential {
            self.keep(key, &block);
        }
        Some(block)
    }

    /// The block, decoded by this call if it is not there. Waits for whoever decodes it already.
    pub(crate) fn block_or_decode<E>(
        &self,
        key: &BlockKey,
        pattern: Pattern,
        decode: impl FnOnce() -> Result<Bytes, E>,
    ) -> Result<Bytes, E> {
        let is_newcomer = self.begins_as_newcomer(key);
        if is_newcomer && let Some(block) = self.block(key, pattern) {
            self.has_served(1);
            return Ok(block);
        }
        let mut is_there = true;
        let block = self.place(is_newcomer).get_or_insert_with(key, || {
            is_there = false;
            decode()
        });
        if let Ok(block) = &block {
            let counter = if is_there { &self.hits } else { &self.misses };
            counter.fetch_add(1, Ordering::Relaxed);
            if is_newcomer && !is_there {
                self.meet(key, pattern, block);
            }
        }
        block
    }

    /// As [`Cache::block_or_decode`], without waiting for anybody. `None` if somebody else decodes it
    /// just now, or if this call cannot.
    pub(crate) fn block_or_decode_at_once(
        &self,
        key: &BlockKey,
        pattern: Pattern,
        decode: impl FnOnce() -> Option<Bytes>,
    ) -> Option<Bytes> {
        let is_newcomer = self.begins_as_newcomer(key);
        match self.place(is_newcomer).get_value_or_guard(key, Some(Duration::ZERO)) {
            GuardResult::Value(block) => {
                self.has_served(1);
                Some(block)
            }
            GuardResult::Guard(guard) => {
                let block = decode()?;
                self.misses.fetch_add(1, Ordering::Relaxed);
                // Refused if it was invalidated meanwhile, which nothing here does.
                let _ = guard.insert(block.clone());
                if is_newcomer {
                    self.meet(key, pattern, &block);
                }
                Some(block)
            }
            GuardResult::Timeout => None,
        }
    }

    /// Whether a long block is wanted for the first time, as far as is remembered. The next time it is the
    /// second. Whoever decodes less than the whole of it then says so: [`Cache::has_decoded_start`].
    pub(crate) fn meets_first(&self, key: &BlockKey) -> bool {
        self.begins_as_newcomer(key) && !self.seen.again(key, key.logical_length)
    }

    /// The start of a block was decoded, and is not kept.
    pub(crate) fn has_decoded_start(&self) {
        self.misses.fetch_add(1, Ordering::Relaxed);
    }

    fn begins_as_newcomer(&self, key: &BlockKey) -> bool {
        let bytes = key.logical_length;
        bytes >= NEWCOMER_BYTES_MIN
            && u64::from(bytes).saturating_mul(NEWCOMERS_MIN) <= self.newcomers_bytes
    }

    fn place(&self, is_newcomer: bool) -> &Bounded<BlockKey, Bytes> {
        if is_newcomer { &self.newcomers } else { &self.blocks }
    }

    /// A newcomer was decoded.
    fn meet(&self, key: &BlockKey, pattern: Pattern, block: &Bytes) {
        if self.seen.again(key, key.logical_length) || pattern == Pattern::Announced {
            self.keep(key, block);
        }
    }

    fn keep(&self, key: &BlockKey, block: &Bytes) {
        self.blocks.insert(*key, block.clone());
        // Not the place of somebody who decodes it again, for whom others wait.
        self.newcomers.remove_if(key, |_| true);
    }

    /// So many blocks that were there were of use.
    pub(crate) fn has_served(&self, blocks: usize) {
        self.hits.fetch_add(blocks as u64, Ordering::Relaxed);
    }

    pub(crate) fn page(&self, key: &PageKey) -> Option<Arc<Page>> {
        self.pages.get(key)
    }

    /// The page, loaded by this call if it is not there. Waits for whoever loads it already.
    pub(crate) fn page_or_load<E>(
        &self,
        key: &PageKey,
        load: impl FnOnce() -> Result<Arc<Page>, E>,
    ) -> Result<Arc<Page>, E> {
        self.pages.get_or_insert_with(key, load)
    }
}

fn bounded<K, V>(
    capacity_bytes: u64,
    typical_bytes: u64,
    hot_share: f64,
    evictions: &Arc<AtomicU64>,
) -> Bounded<K, V>
where
    K: Eq + std::hash::Hash + Clone,
    V: Clone,
    Weigh: Weighter<K, V> + Clone,
{
    let shards = (capacity_bytes / SHARD_BYTES_MIN).clamp(1, SHARDS_MAX);
    let items = (capacity_bytes / typical_bytes).max(1);
    // All that is required is given, which is all that building can miss.
    let options = OptionsBuilder::new()
        .shards(usize::try_from(shards).unwrap_or(1))
        .estimated_items_capacity(usize::try_from(items).unwrap_or(usize::MAX))
        .weight_capacity(capacity_bytes)
        .hot_allocation(hot_share)
        .build()
        .expect("every required option is set above");
    QuickCache::with_options(
        options,
        Weigh,
        DefaultHashBuilder::default(),
        Evictions(Arc::clone(evictions)),
    )
}

#[cfg(test)]
mod tests;
