"""What a file of a log may be: folders of Spark, empty parts, compressed files, absolute globs."""

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from passerelle.config import validate
from passerelle.dataset import Dataset
from passerelle.errors import UserError
from passerelle.prepare.config import PrepareConfig, load_prepare_config
from passerelle.prepare.pipeline import prepare

CSV = b"user,item,time\nu1,a,1\nu2,b,2\n"
Compress = Callable[[bytes], bytes]


def zstandard(content: bytes) -> bytes:
    packed: bytes = pa.compress(content, codec="zstd", asbytes=True)
    return packed


def dataset_of(folder: Path, files: str, **events: object) -> Dataset:
    """The dataset of the event files that a pattern finds in a folder."""
    described = {
        "name": "t",
        "user_id_type": "string",
        "item_id_type": "string",
        "events": [{"files": [files], "user_id": "user", "item_id": "item", "timestamp": "time", **events}],
    }
    config = validate(PrepareConfig, described, "test", given=True)
    return prepare(config, folder, folder.parent / "dataset", overwrite=True)


def items_of(dataset: Dataset) -> list[str]:
    ids: list[str] = dataset.items.column("item_id").to_pylist()
    return ids


def write_parquet(path: Path, item: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pa.table({"user": ["u"], "item": [item], "time": [1]}), path)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, zstandard])
@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.csv.zst", "log"])
def test_compression_is_told_by_the_content(tmp_path: Path, compress: Compress, name: str) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / name).write_bytes(compress(CSV))
    assert items_of(dataset_of(folder, "log" if name == "log" else "log.csv")) == ["a", "b"]


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, zstandard])
def test_parts_that_were_compressed_and_put_together(tmp_path: Path, compress: Compress) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "log.csv").write_bytes(compress(CSV) + compress(b"u3,c,3\n"))
    assert items_of(dataset_of(folder, "log.csv")) == ["a", "b", "c"]


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, zstandard])
def test_a_truncated_file_is_refused(tmp_path: Path, compress: Compress) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    rows = b"".join(b"u%d,i%d,%d\n" % (number, number * 7 % 1000, number) for number in range(20_000))
    (folder / "log.csv").write_bytes(compress(b"user,item,time\n" + rows)[:-2000])
    with pytest.raises(UserError, match=r"log\.csv: (truncated or damaged|cannot be read)"):
        dataset_of(folder, "log.csv")


def test_a_folder_of_spark(tmp_path: Path) -> None:
    spark = tmp_path / "logs" / "events.parquet"
    for name, item in (("part-00000-x.snappy.parquet", "a"), ("part-00001-x.snappy.parquet", "b")):
        write_parquet(spark / name, item)
    (spark / "_SUCCESS").touch()
    (spark / ".part-00000-x.snappy.parquet.crc").write_bytes(b"crc")
    (spark / "_temporary").mkdir()
    (spark / "_temporary" / "part-9.parquet").write_bytes(b"half")
    assert items_of(dataset_of(tmp_path / "logs", "events.parquet", format="parquet")) == ["a", "b"]


def test_columns_in_the_names_of_folders(tmp_path: Path) -> None:
    for item in ("a", "b%2Fc", "__HIVE_DEFAULT_PARTITION__"):
        path = tmp_path / "logs" / "events" / f"sku={item}" / "part-0.parquet"
        write_parquet(path, "unused")
    dataset = dataset_of(tmp_path / "logs", "events", format="parquet", item_id="sku")
    assert items_of(dataset) == ["a", "b/c"]
    assert dataset.manifest.quality["dropped"]["missing_item_id"] == 1


def test_a_folder_without_files(tmp_path: Path) -> None:
    (tmp_path / "logs" / "events").mkdir(parents=True)
    with pytest.raises(UserError, match="events is a folder without files"):
        dataset_of(tmp_path / "logs", "events")


@pytest.mark.parametrize("file_format", ["csv", "parquet", "jsonl"])
def test_a_part_without_a_byte_has_no_rows(tmp_path: Path, file_format: str) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    content = {"csv": CSV, "jsonl": b'{"user":"u1","item":"a","time":1}\n{"user":"u2","item":"b","time":2}\n'}
    if file_format == "parquet":
        write_parquet(folder / "part-1", "a")
        write_parquet(folder / "part-3", "b")
    else:
        (folder / "part-1").write_bytes(content[file_format])
    (folder / "part-0").touch()
    (folder / "part-2").touch()
    assert items_of(dataset_of(folder, "part-*", format=file_format)) == ["a", "b"]


@pytest.mark.parametrize("pattern", ["part-*.csv", "**/part-?.csv", "part-1.csv"])
def test_absolute_patterns(tmp_path: Path, pattern: str) -> None:
    logs = tmp_path / "with [brackets] and space"
    logs.mkdir()
    (logs / "part-1.csv").write_bytes(CSV)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # A pattern is one as a whole, so that the user escapes what is none.
    absolute = str(logs).replace("[", "[[]") if any(sign in pattern for sign in "*?") else str(logs)
    assert items_of(dataset_of(elsewhere, f"{absolute}/{pattern}")) == ["a", "b"]
    assert items_of(dataset_of(logs, pattern)) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04rest", "a zip archive: unpack it"),
        (CSV.decode().encode("utf-16"), 'UTF-16 text: set encoding = "utf-16"'),
        (b"PAR1rest", 'a Parquet file: set format = "parquet"'),
    ],
)
def test_other_formats_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "log.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        dataset_of(folder, "log.csv")


def test_utf_16_is_read_where_it_is_announced(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "log.csv").write_bytes(CSV.decode().encode("utf-16"))
    assert items_of(dataset_of(folder, "log.csv", encoding="utf-16")) == ["a", "b"]


def test_a_description_with_a_byte_order_mark(tmp_path: Path) -> None:
    described = 'name = "t"\nuser_id_type = "string"\nitem_id_type = "string"\n[[events]]\nfiles = ["x"]\n'
    described += 'user_id = "u"\nitem_id = "i"\ntimestamp = "t"\n'
    (tmp_path / "d.toml").write_bytes(b"\xef\xbb\xbf" + described.encode())
    assert load_prepare_config(str(tmp_path / "d.toml")).name == "t"
