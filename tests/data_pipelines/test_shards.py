"""A clip comes out of a shard as it went in, or with an error that names the shard; and no file stays open."""

import os
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest

from mien.data_pipelines import shards
from mien.data_pipelines.decode import DecodeError
from mien.data_pipelines.shards import Record
from mien.data_pipelines.threads import in_order

RECORDS = [
    Record("clip one.mp4", False, (b"a video's bytes" * 10,)),
    Record("été", True, (b"\n{}", b"", b"three" * 100_000)),
    Record("00001", True, (b"x",)),
]


def written(path: Path) -> list[str]:
    contents = [shards.to_bytes(record) for record in RECORDS]
    offsets = shards.write(path, [(record.name, content) for record, content in zip(RECORDS, contents, strict=True)])
    return [shards.place(str(path), offset, len(content)) for offset, content in zip(offsets, contents, strict=True)]


def plain(record: Record) -> Record:
    return record._replace(parts=tuple(map(bytes, record.parts)))


def test_clips_come_back_and_any_reader_of_parquet_lists_them(tmp_path: Path) -> None:
    places = written(tmp_path / "a shard#1+2.parquet")
    assert all(map(shards.is_clip, places))
    assert [plain(shards.fetch(place)) for place in places] == RECORDS
    table = pq.read_table(tmp_path / "a shard#1+2.parquet")
    assert table["video"].to_pylist() == [record.name for record in RECORDS]
    assert table["clip"].to_pylist() == [shards.to_bytes(record) for record in RECORDS]
    assert pq.read_metadata(tmp_path / "a shard#1+2.parquet").num_row_groups == len(RECORDS)  # one clip, one group
    assert [file.name for file in tmp_path.iterdir()] == ["a shard#1+2.parquet"]


@pytest.mark.parametrize("path", ["clip.mp4", "shard.parquet", "shard.parquet#7", "a#1+2", "clip#1+2.mp4"])
def test_other_paths_name_no_clip_in_a_shard(path: str) -> None:
    assert not shards.is_clip(path)


def test_a_flipped_byte_anywhere_in_a_clip_is_told_by_the_shards_name_and_harms_no_other_clip(tmp_path: Path) -> None:
    shard = tmp_path / "shard-00007-00.parquet"
    places = written(shard)
    offset, length = map(int, places[0].rpartition("#")[2].split("+"))
    good = shard.read_bytes()
    for byte in range(offset, offset + length):
        shard.write_bytes(good[:byte] + bytes([good[byte] ^ 4]) + good[byte + 1 :])
        with pytest.raises(DecodeError, match=r"shard-00007-00\.parquet#.*: the shard is damaged"):
            shards.fetch(places[0])
    assert plain(shards.fetch(places[1])) == RECORDS[1]
    # Of images, those that are not wanted are not looked at.
    shard.write_bytes(good.replace(b"threethree", b"threeThree"))
    assert shards.fetch(places[1], [0, 1, 9]).parts[0].tobytes() == b"\n{}"
    for wanted in (None, [2, 0], range(3)):
        with pytest.raises(DecodeError, match="damaged: file 2 of 3"):
            shards.fetch(places[1], wanted)


def test_a_truncated_and_a_missing_shard_are_told_by_name(tmp_path: Path) -> None:
    shard = tmp_path / "shard-00007-00.parquet"
    places = written(shard)
    offset, length = map(int, places[1].rpartition("#")[2].split("+"))
    os.truncate(shard, offset + 10)
    with pytest.raises(DecodeError, match=rf"shard-00007-00.*truncated: {length - 10} of the clip's {length} bytes"):
        shards.fetch(places[1])
    shard.unlink()
    with pytest.raises(DecodeError, match=r"shard-00007-00.*cannot be read: No such file"):
        shards.fetch(places[0])


def test_shards_are_read_from_urls(tmp_path: Path) -> None:
    shard = tmp_path / "shard.parquet"
    places = written(shard)
    assert [plain(shards.fetch(f"file://{place}")) for place in places] == RECORDS
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/bucket/shard.parquet", shard.read_bytes())
    try:
        remote = [place.replace(str(tmp_path), "memory://bucket") for place in places]
        assert [plain(shards.fetch(place)) for place in remote] == RECORDS
        memory.pipe_file("/bucket/shard.parquet", shard.read_bytes()[:60])
        with pytest.raises(DecodeError, match=r"memory://bucket/shard\.parquet#.*truncated"):
            shards.fetch(remote[1])
    finally:
        memory.rm("/bucket", recursive=True)
    with pytest.raises(DecodeError, match=r"memory://bucket/shard\.parquet#.*cannot be read"):
        shards.fetch(remote[0])


def test_no_file_stays_open_however_many_clips_and_shards_are_read(tmp_path: Path) -> None:
    places = [place for number in range(20) for place in written(tmp_path / f"{number}.parquet")]
    places += [f"file://{place}" for place in places]
    shards.fetch(places[-1])

    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = opened()
    most = max(
        opened() for _ in in_order(lambda number: shards.fetch(places[number % 120]), range(3000), threads=4, ahead=8)
    )
    assert opened() == before
    assert most <= before + 4 + 1  # one for each thread, and one to count


def test_the_size_of_a_clip_is_told_by_its_place_and_that_of_a_file_by_the_disk(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(bytes(123))
    places = [shards.place("s3://bucket/a.parquet", 5, 77), tmp_path / "a.mp4", tmp_path / "missing.mp4"]
    assert [shards.size(place) for place in places] == [77, 123, 0]
