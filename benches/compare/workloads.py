"""What is measured, and how good it has to be: data, in one place."""

import dataclasses

# Random reads of what is cached stay inside this.
SPAN = 128 << 20
# Reads in flight of a sequential reader, and connections at a time of those that come and go.
SEQUENTIAL = "--pattern sequential --block 262144 --queue 8"
CACHED_4K = f"--pattern random --block 4096 --span {SPAN}"
COLD = "--pattern random --distinct"
BOUNDED = "--pattern random --block 4096 --queue 32"
CONNECTS = "--connections 4"
BEFORE = ("limit", "memory", "qcow2", "upstream")


@dataclasses.dataclass(frozen=True)
class Workload:
    """What `nbd-load` does to each server."""

    key: str
    load: str
    # Which states ours is measured in, and with which compression.
    states: dict
    # Whom ours is compared with.
    references: tuple = BEFORE
    action: str = "read"
    tls: bool = False
    # For the state `cold`, in which what was read once is not cold any more.
    cold_load: str = ""


BOTH = ("lz4", "zstd")
LZ4 = ("lz4",)
# What is cached is decoded: the compression makes no difference.
SEQUENTIAL_STATES = {"cold": BOTH, "cached": LZ4}


def sequential(key, connections, tls=False):
    load = f"{SEQUENTIAL} --connections {connections}"
    return Workload(key, load, SEQUENTIAL_STATES, tls=tls, cold_load=f"{load} --once")


WORKLOADS = [
    sequential("sequential", 1),
    sequential("sequential 4", 4),
    Workload("4k q1 cached", f"{CACHED_4K} --queue 1", {"cached": LZ4}),
    Workload(
        "4k q1 cold", f"{COLD} --block 4096 --queue 1", {"cold": BOTH}, ("qcow2", "upstream")
    ),
    Workload("4k q32 cached", f"{CACHED_4K} --queue 32", {"cached": LZ4}),
    Workload("4k q32 cached 4", f"{CACHED_4K} --queue 32 --connections 4", {"cached": LZ4}),
    Workload("4k q32 bounded", BOUNDED, {"bounded": BOTH}, BEFORE[1:]),
    Workload("4k q32 bounded 4", f"{BOUNDED} --connections 4", {"bounded": BOTH}, BEFORE[1:]),
    Workload(
        "64k q16 cached", f"--pattern random --block 65536 --queue 16 --span {SPAN}", {"cached": LZ4}
    ),
    Workload(
        "64k q16 cold", f"{COLD} --block 65536 --queue 16", {"cold": BOTH}, ("qcow2", "upstream")
    ),
    Workload("connect", CONNECTS, {"cached": LZ4}, action="connect"),
    sequential("tls sequential", 1, tls=True),
    sequential("tls sequential 4", 4, tls=True),
    Workload("tls 4k q32 cached", f"{CACHED_4K} --queue 32", {"cached": LZ4}, tls=True),
    Workload(
        "tls 4k q32 cached 4", f"{CACHED_4K} --queue 32 --connections 4", {"cached": LZ4}, tls=True
    ),
    Workload("tls connect", CONNECTS, {"cached": LZ4}, action="connect", tls=True),
    Workload("start", "", {"large": LZ4}, (), action="start"),
]


@dataclasses.dataclass(frozen=True)
class Measure:
    """A number that a run gives."""

    unit: str
    of: object
    more_is_better: bool
    digits: int = 0


MB_PER_SECOND = Measure("MB/s", lambda run: run["mb_per_second"], True)
THOUSANDS = Measure("thousand/s", lambda run: run["per_second"] / 1e3, True, 1)
PER_SECOND = Measure("per second", lambda run: run["per_second"], True)
P50 = Measure("p50 µs", lambda run: run["p50_us"], False, 1)
CPU_EACH = Measure(
    "server CPU µs each", lambda run: run["server_cpu_seconds"] / run["requests"] * 1e6, False, 2
)
CPU_GIB = Measure(
    "server CPU s/GiB", lambda run: run["server_cpu_seconds"] / run["bytes"] * 2**30, False, 3
)
FIRST_BYTE = Measure("ms", lambda run: run["milliseconds"], False, 1)


@dataclasses.dataclass(frozen=True)
class Goal:
    """How ours has to be. Which direction is good, the measure says."""

    method: str
    factor: float
    # A column, or nothing where the goal is a number.
    reference: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    title: str
    workload: str
    state: str
    measure: Measure
    goals: tuple


def lz4(factor, reference=""):
    return Goal("lz4", factor, reference)


def zstd(factor, reference=""):
    return Goal("zstd", factor, reference)


SEQ = "sequential 256 KiB"
ROWS = [
    Row(f"{SEQ}, 1 connection, cold", "sequential", "cold", MB_PER_SECOND,
        (lz4(0.7, "memory"), zstd(0.55, "memory"))),
    Row(f"{SEQ}, 1 connection, cached", "sequential", "cached", MB_PER_SECOND,
        (lz4(0.9, "memory"),)),
    Row(f"{SEQ}, 4 connections, cold", "sequential 4", "cold", MB_PER_SECOND,
        (lz4(0.65, "memory"),)),
    Row(f"{SEQ}, 4 connections, cached", "sequential 4", "cached", MB_PER_SECOND,
        (lz4(0.9, "memory"),)),
    Row("random 4 KiB, queue 1, cached", "4k q1 cached", "cached", P50, (lz4(1.0, "memory"),)),
    Row("random 4 KiB, queue 1, cold", "4k q1 cold", "cold", P50,
        (lz4(0.5, "qcow2"), zstd(1.0, "qcow2"))),
    Row("random 4 KiB, queue 32, cached", "4k q32 cached", "cached", THOUSANDS,
        (lz4(2.5, "memory"),)),
    Row("random 4 KiB, queue 32, cached, 4 connections", "4k q32 cached 4", "cached", THOUSANDS,
        (lz4(4.0, "memory"),)),
    Row("random 4 KiB, queue 32, a sixth cached", "4k q32 bounded", "bounded", THOUSANDS,
        (lz4(2.0, "upstream"),)),
    Row("random 4 KiB, queue 32, a sixth cached, 4 connections", "4k q32 bounded 4", "bounded",
        THOUSANDS, (lz4(1.5, "upstream"),)),
    Row("random 64 KiB, queue 16, cached", "64k q16 cached", "cached", MB_PER_SECOND,
        (lz4(1.3, "memory"),)),
    Row("random 64 KiB, queue 16, cold", "64k q16 cold", "cold", MB_PER_SECOND,
        (lz4(2.0, "qcow2"),)),
    Row("connect, GO, disconnect", "connect", "cached", PER_SECOND, (lz4(0.85, "limit"),)),
    Row(f"TLS {SEQ}, 1 connection, cold", "tls sequential", "cold", MB_PER_SECOND,
        (lz4(0.9, "memory"),)),
    Row(f"TLS {SEQ}, 1 connection, cached", "tls sequential", "cached", MB_PER_SECOND,
        (lz4(1.0, "memory"),)),
    Row(f"TLS {SEQ}, 4 connections, cold", "tls sequential 4", "cold", MB_PER_SECOND,
        (lz4(0.9, "memory"),)),
    Row(f"TLS {SEQ}, 4 connections, cached", "tls sequential 4", "cached", MB_PER_SECOND,
        (lz4(1.0, "memory"),)),
    Row("TLS random 4 KiB, queue 32, cached", "tls 4k q32 cached", "cached", THOUSANDS,
        (lz4(1.5, "memory"),)),
    Row("TLS random 4 KiB, queue 32, cached, 4 connections", "tls 4k q32 cached 4", "cached",
        THOUSANDS, (lz4(3.0, "memory"),)),
    Row("TLS connect, mutual, ECDSA P-256", "tls connect", "cached", PER_SECOND,
        (lz4(1.3, "qcow2"),)),
    Row("random 4 KiB, queue 32, cached", "4k q32 cached", "cached", CPU_EACH, (lz4(3.5),)),
    Row("TLS random 4 KiB, queue 32, cached", "tls 4k q32 cached", "cached", CPU_EACH,
        (lz4(6.0),)),
    Row(f"{SEQ}, 1 connection, cold", "sequential", "cold", CPU_GIB, (lz4(0.75),)),
    Row(f"TLS {SEQ}, 1 connection, cold", "tls sequential", "cold", CPU_GIB, (lz4(1.0),)),
    Row("TLS connect, mutual, ECDSA P-256", "tls connect", "cached", CPU_EACH, (lz4(330.0),)),
    Row("start to first byte, snapshot of 1 TiB", "start", "large", FIRST_BYTE, (lz4(10.0),)),
]
