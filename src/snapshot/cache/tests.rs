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
    let (copied, browsed) = (decoded_again(Pattern::Sequential), decoded_again(Pattern::Random));
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
    let block = cache
        .block_or_decode(&key(1), Pattern::Random, || Ok::<_, &str>(Bytes::from_static(b"fine")));
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
                assert_eq!(cache.block_or_decode(&key(1), Pattern::Random, fetch).unwrap(), "block")
            });
        }
    });
    assert_eq!(fetches.into_inner(), 1);
}
