"""The source's rules: shards, starts, chunks, groups, watermark."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vocbeam.schemas.errors import ConfigError, TopicChanged
from vocbeam.schemas.records import PartitionKey, RawChunk
from vocbeam.transforms.chunking import Bounds, Polled, Shard, ShardWatermark, cut_chunks, pack_groups, start_of

KEY = PartitionKey("cluster", "id", "voc.survey", 0)
TOPICS = ("voc.survey", "voc.ticket", "voc.telemetry")


def polled(next_offset: int, *offsets: int) -> Polled:
    return Polled(list(offsets), [b"x"] * len(offsets), list(offsets), next_offset)


def ranges(chunks: list[RawChunk]) -> list[tuple[int, int, int, list[int]]]:
    return [(chunk.first_offset, chunk.next_offset, chunk.lost, chunk.offsets) for chunk in chunks]


def test_shard__every_partition_has_exactly_one_owner() -> None:
    shards = [Shard(number, 4) for number in range(4)]
    for topic in TOPICS:
        for partition in range(9):
            assert sum(shard.owns(TOPICS, topic, partition) for shard in shards) == 1


def test_shard__spreads_partitions_and_single_partition_topics() -> None:
    # Topic i, partition p belongs to (i + p) mod 3: loads 2, 1, 1 by topic 0, then 1, 2, 1, then 1, 1, 2.
    load = [
        sum(Shard(number, 3).owns(TOPICS, topic, partition) for topic in TOPICS for partition in range(4))
        for number in range(3)
    ]
    assert load == [4, 4, 4]
    first = [sum(Shard(number, 3).owns(TOPICS, topic, 0) for topic in TOPICS) for number in range(3)]
    assert first == [1, 1, 1]


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        pytest.param(None, (10, 10, 0), id="no ledger row: the beginning, and nothing is lost"),
        pytest.param(15, (15, 15, 0), id="within the log"),
        pytest.param(10, (10, 10, 0), id="at its beginning"),
        pytest.param(20, (20, 20, 0), id="at its end"),
        pytest.param(4, (10, 4, 6), id="before it: offsets 4 to 9 are lost"),
    ],
)
def test_start_of__position_within_and_before_the_log(position: int | None, expected: tuple[int, int, int]) -> None:
    assert start_of(KEY, position, beginning=10, end=20) == expected


def test_start_of__log_ends_before_the_position() -> None:
    with pytest.raises(TopicChanged, match=r"voc\.survey\[0\] ends at offset 20, but .* up to 21"):
        start_of(KEY, 21, beginning=10, end=20)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param((0, 0, polled(3, 0, 1, 2)), [(0, 2, 0, [0, 1]), (2, 3, 0, [2])], id="more than the bound"),
        pytest.param((0, 0, polled(9, 2, 5)), [(0, 9, 0, [2, 5])], id="gaps in front, between and behind"),
        pytest.param((0, 0, polled(9, 1, 4, 7)), [(0, 7, 0, [1, 4]), (7, 9, 0, [7])], id="a gap at the cut"),
        pytest.param((3, 0, polled(8)), [(3, 8, 0, [])], id="offsets without any record"),
        pytest.param((3, 0, polled(3)), [], id="nothing moved"),
        pytest.param(
            (2, 4, polled(9, 6, 7, 8)), [(2, 8, 4, [6, 7]), (8, 9, 0, [8])], id="lost in the first chunk only"
        ),
        pytest.param((2, 4, polled(6)), [(2, 6, 4, [])], id="all lost, nothing to read"),
    ],
)
def test_cut_chunks__covers_the_range(
    arguments: tuple[int, int, Polled], expected: list[tuple[int, int, int, list[int]]]
) -> None:
    assert ranges(list(cut_chunks(KEY, *arguments, Bounds(chunk_records=2)))) == expected


def test_cut_chunks__byte_bound_and_tombstones() -> None:
    values = [b"aaa", None, b"bb", b"c", b"too large by itself", b"d"]
    chunks = list(cut_chunks(KEY, 0, 0, Polled(list(range(6)), values, [0] * 6, 6), Bounds(chunk_bytes=5)))
    assert [chunk.values for chunk in chunks] == [[b"aaa", None, b"bb"], [b"c"], [b"too large by itself"], [b"d"]]


@given(
    offsets=st.lists(st.integers(5, 80), unique=True).map(sorted),
    behind=st.integers(0, 5),
    size=st.integers(1, 7),
)
def test_cut_chunks__ranges_are_contiguous_and_keep_every_record(offsets: list[int], behind: int, size: int) -> None:
    end = (offsets[-1] + 1 if offsets else 5) + behind
    chunks = list(cut_chunks(KEY, 5, 0, polled(end, *offsets), Bounds(chunk_records=size)))
    assert [offset for chunk in chunks for offset in chunk.offsets] == offsets
    edges = [5, *(chunk.next_offset for chunk in chunks)]
    assert [chunk.first_offset for chunk in chunks] == edges[:-1]
    assert edges[-1] == end
    for chunk in chunks:
        assert len(chunk.offsets) <= size
        assert all(chunk.first_offset <= offset < chunk.next_offset for offset in chunk.offsets)


def test_polled__before_an_offset() -> None:
    assert polled(9, 2, 5, 7).before(7) == polled(7, 2, 5)
    assert polled(9, 2, 5).before(8) == polled(8, 2, 5)
    assert polled(9, 2, 5).before(2) == polled(2)


def test_pack_groups__bounds_in_records_and_bytes() -> None:
    def chunk(count: int, length: int) -> RawChunk:
        return RawChunk(KEY, 0, count, list(range(count)), [b"x" * length] * count)

    chunks = [chunk(2, 1), chunk(2, 1), chunk(1, 1), chunk(1, 100), chunk(9, 1), chunk(0, 0)]
    groups = list(pack_groups(chunks, Bounds(group_records=4, group_bytes=50)))
    assert [[len(part.offsets) for part in group] for group in groups] == [[2, 2], [1], [1], [9], [0]]
    assert list(pack_groups([], Bounds())) == []


def test_bounds__below_one() -> None:
    with pytest.raises(ConfigError, match="chunk_records is 0"):
        Bounds(chunk_records=0)


A, B = ("voc.survey", 0), ("voc.ticket", 0)


def test_watermark__lowest_partition_counts() -> None:
    watermark = ShardWatermark()
    watermark.observe(A, 100, now=1_000)
    assert watermark.advance({A: False, B: False}, now=1_000) is None  # B is behind and unknown
    watermark.observe(B, 70, now=1_000)
    assert watermark.advance({A: False, B: False}, now=1_000) == 70
    watermark.observe(B, 300, now=1_000)
    assert watermark.advance({A: False, B: False}, now=1_000) == 100


def test_watermark__idle_partitions_advance_with_the_clock_and_never_go_back() -> None:
    watermark = ShardWatermark()
    watermark.observe(A, 100, now=1_000)
    assert watermark.advance({A: False, B: True}, now=1_000) == 100
    assert watermark.advance({A: True, B: True}, now=1_200) == 1_200
    watermark.observe(A, 50, now=1_300)  # late by its own timestamp
    assert watermark.advance({A: False, B: False}, now=1_300) == 1_200
    assert watermark.advance({}, now=1_400) == 1_400


def test_watermark__timestamp_from_the_future_counts_as_now() -> None:
    watermark = ShardWatermark()
    watermark.observe(A, 10**18, now=1_000)
    assert watermark.advance({A: False}, now=1_000) == 1_000
