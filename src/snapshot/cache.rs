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

    /// What it may hold, in bytes.
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
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
        self.newcomers.remove(key);
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
mod tests {
    use super::*;

    const LONG: u32 = 65_536;

    /// Of a block that is too short to be a newcomer.
    fn key(offset: u64) -> BlockKey {
        key_of(offset, 9)
    }

    fn key_of(offset: u64, logical_length: u32) -> BlockKey {
        BlockKey { file: FileId(0), offset, length: 9, logical_length, crc: 0, number: 0 }
    }

    /// Reads a long block. Returns whether it had to be decoded.
    fn read(cache: &Cache, offset: u64, pattern: Pattern) -> bool {
        let key = key_of(offset, LONG);
        if cache.block(&key, pattern).is_some() {
            return false;
        }
        let before = cache.statistics().misses;
        let decode = || Ok::<_, std::convert::Infallible>(Bytes::from(vec![1; LONG as usize]));
        cache.block_or_decode(&key, pattern, decode).unwrap();
        cache.statistics().misses != before
    }

    fn decoded(cache: &Cache, offsets: std::ops::Range<u64>, pattern: Pattern) -> usize {
        offsets.filter(|offset| read(cache, *offset, pattern)).count()
    }

    fn fill(cache: &Cache, blocks: u64, block_bytes: usize) {
        for offset in 0..blocks {
            let block = cache.block_or_decode(&key(offset), Pattern::Random, || {
                Ok::<_, std::convert::Infallible>(Bytes::from(vec![1; block_bytes]))
            });
            assert_eq!(block.unwrap().len(), block_bytes);
        }
    }

    #[test]
    fn the_bound_in_bytes_holds_for_blocks_of_every_size() {
        for block_bytes in [100, 1400, 65_536, 3 << 20] {
            let cache = Cache::new(8 << 20);
            fill(&cache, (32 << 20) / block_bytes as u64, block_bytes);
            assert!(cache.used_bytes() <= 8 << 20, "{block_bytes}: {}", cache.used_bytes());
            assert!(cache.used_bytes() > 3 << 20, "{block_bytes}: {}", cache.used_bytes());
        }
    }

    #[test]
    fn what_is_found_what_is_not_and_what_makes_room_is_counted() {
        let cache = Cache::new(8 << 20);
        fill(&cache, 10, 65_536);
        fill(&cache, 3, 65_536);
        // To look is no use of it yet.
        assert!(cache.block(&key(3), Pattern::Random).is_some());
        assert!(cache.block(&key(99), Pattern::Random).is_none());
        cache.has_served(1);
        let statistics = cache.statistics();
        assert_eq!((statistics.hits, statistics.misses, statistics.evictions), (4, 10, 0));
        assert_eq!(statistics.capacity_bytes, 8 << 20);
        fill(&cache, 1000, 65_536);
        assert!(cache.statistics().evictions > 800, "{:?}", cache.statistics());
    }

    /// Reads what many read, again and again, while somebody copies everything once in small reads.
    /// Returns how much of the former had to be decoded again.
    fn decoded_again(pattern: Pattern) -> u64 {
        const HOT: u64 = 32;
        let cache = Cache::new(8 << 20);
        let touch = |offset, pattern| {
            if cache.block(&key(offset), pattern).is_none() {
                fill_one(&cache, offset);
            }
        };
        let mut again = 0;
        for copied in 0..2000 {
            for _ in 0..16 {
                touch(1000 + copied, pattern);
            }
            let before = cache.statistics().misses;
            touch(copied % HOT, Pattern::Random);
            if copied >= 2 * HOT {
                again += cache.statistics().misses - before;
            }
        }
        again
    }

    fn fill_one(cache: &Cache, offset: u64) {
        let decode = || Ok::<_, std::convert::Infallible>(Bytes::from(vec![1; 65_536]));
        cache.block_or_decode(&key(offset), Pattern::Random, decode).unwrap();
    }

    #[test]
    fn who_copies_everything_does_not_drive_out_what_others_use() {
        let (copied, browsed) =
            (decoded_again(Pattern::Sequential), decoded_again(Pattern::Random));
        assert!(copied <= 5, "{copied} of 1936 reads");
        assert!(browsed > copied, "without it {browsed} of 1936 reads");
    }

    #[test]
    fn what_is_read_ahead_is_still_there_when_its_reader_comes() {
        let cache = Cache::new(32 << 20);
        let ahead = cache.ahead_bytes_max() / u64::from(LONG);
        assert!(ahead >= 32, "{ahead}");
        for offset in 0..3000 {
            read(&cache, offset + ahead, Pattern::Sequential);
            if offset >= ahead {
                assert!(!read(&cache, offset, Pattern::Sequential), "{offset}");
            }
        }
    }

    #[test]
    fn long_blocks_that_are_read_once_have_little_room_and_the_second_time_they_are_kept() {
        for pattern in [Pattern::Random, Pattern::Sequential] {
            let cache = Cache::new(64 << 20);
            assert_eq!(decoded(&cache, 0..500, pattern), 500);
            assert!(cache.used_bytes() <= (64 << 20) / NEWCOMERS_SHARE, "{}", cache.used_bytes());
            assert!(decoded(&cache, 0..500, pattern) > 300);
            assert!(decoded(&cache, 0..500, pattern) < 150, "what is met again first is there");
            assert!(cache.used_bytes() > 20 << 20, "{}", cache.used_bytes());
        }
    }

    #[test]
    fn a_newcomer_that_is_read_again_is_kept_unless_that_is_one_reader_who_goes_on() {
        let cache = Cache::new(64 << 20);
        let is_kept = |offset| cache.blocks.peek(&key_of(offset, LONG)).is_some();
        read(&cache, 1, Pattern::Sequential);
        assert!(!read(&cache, 1, Pattern::Sequential) && !is_kept(1));
        assert!(!read(&cache, 1, Pattern::Random) && is_kept(1));
        assert!(cache.newcomers.peek(&key_of(1, LONG)).is_none(), "and takes room once");
        read(&cache, 2, Pattern::Random);
        assert!(!is_kept(2));
        read(&cache, 3, Pattern::Announced);
        assert!(is_kept(3));
    }

    #[test]
    fn what_is_decoded_at_once_is_a_newcomer_too() {
        let cache = Cache::new(64 << 20);
        let key = key_of(1, LONG);
        let decode = || Some(Bytes::from(vec![1; LONG as usize]));
        assert!(cache.block_or_decode_at_once(&key, Pattern::Random, decode).is_some());
        assert!(cache.blocks.peek(&key).is_none() && cache.newcomers.peek(&key).is_some());
        let other = key_of(2, LONG);
        assert!(cache.meets_first(&other) && !cache.meets_first(&other));
        assert!(cache.block_or_decode_at_once(&other, Pattern::Random, decode).is_some());
        assert!(cache.blocks.peek(&other).is_some(), "whose start was wanted before");
    }

    #[test]
    fn blocks_for_which_newcomers_have_no_room_are_kept_at_once() {
        for capacity in [1_u64 << 20, 40 << 20, 64 << 20, 300 << 20, 4 << 30] {
            let cache = Cache::new(capacity);
            let longest = u32::try_from(cache.newcomers_bytes / NEWCOMERS_MIN).unwrap();
            for length in [NEWCOMER_BYTES_MIN - 1, longest, longest + 1] {
                let key = key_of(1, length);
                let decode = || Some(Bytes::from(vec![1; length as usize]));
                cache.block_or_decode_at_once(&key, Pattern::Random, decode).unwrap();
                let is_newcomer = cache.newcomers.peek(&key).is_some();
                assert_ne!(is_newcomer, cache.blocks.peek(&key).is_some(), "{capacity} {length}");
                assert_eq!(is_newcomer, length == longest, "{capacity} {length}");
            }
        }
    }

    #[test]
    fn without_room_blocks_are_served_and_not_kept() {
        let cache = Cache::new(0);
        fill(&cache, 10, 1000);
        assert_eq!(cache.used_bytes(), 0);
    }

    #[test]
    fn a_failed_fetch_is_tried_again_by_the_next_reader() {
        let cache = Cache::new(1 << 20);
        assert_eq!(
            cache.block_or_decode(&key(1), Pattern::Random, || Err::<Bytes, _>("broken")),
            Err("broken")
        );
        let block = cache.block_or_decode(&key(1), Pattern::Random, || {
            Ok::<_, &str>(Bytes::from_static(b"fine"))
        });
        assert_eq!(block.unwrap(), "fine");
    }

    #[test]
    fn one_fetch_serves_all_who_wait() {
        let cache = Cache::new(1 << 20);
        let fetches = AtomicU64::new(0);
        let fetch = || {
            fetches.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(std::time::Duration::from_millis(20));
            Ok::<_, std::convert::Infallible>(Bytes::from_static(b"block"))
        };
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    assert_eq!(
                        cache.block_or_decode(&key(1), Pattern::Random, fetch).unwrap(),
                        "block"
                    )
                });
            }
        });
        assert_eq!(fetches.into_inner(), 1);
    }
}
