"""Where files are looked for, in which order, and what a download may and may not leave behind."""

import gzip
import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from passerelle.config import validate
from passerelle.dataset import open_dataset
from passerelle.errors import UserError
from passerelle.prepare import PrepareConfig, find_source, prepare
from passerelle.prepare.sources import resolve_files
from tests.passerelle.conftest import config_of, histories

CSV = "user,item,time\nu,a,1\n"
PAGE = {
    "folder": "shop",
    "page": "https://example.org/shop",
    "instructions": "shop.zip; log.csv goes in one folder",
}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of a machine without data: working directory `machine/work`, cache `machine/cache`."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PASSERELLE_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path


def put(folder: Path, name: str = "log.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(CSV)
    return folder


def shop(**source: Any) -> PrepareConfig:
    return config_of(source=PAGE | source)


def test_order_of_source_folders(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = shop()
    message = (
        r"^test: no log\.csv in \.\./shared/data/shop, \S*cache/passerelle/shop: "
        r"get them at https://example\.org/shop \(.*--source$"
    )
    with pytest.raises(UserError, match=message):
        find_source(config, None)
    cached = put(machine / "cache" / "passerelle" / "shop")
    assert find_source(config, None) == cached
    put(machine / "shared" / "data" / "shop")
    assert find_source(config, None) == Path("../shared/data/shop")
    monkeypatch.setenv("PASSERELLE_DATA", str(machine / "mine"))
    assert find_source(config, None) == Path("../shared/data/shop")  # nothing there yet
    put(machine / "mine")
    assert find_source(config, None) == machine / "mine"
    put(machine / "mine" / "shop")
    assert find_source(config, None) == machine / "mine" / "shop"
    put(machine / "given")
    assert find_source(config, machine / "given") == machine / "given"


def test_a_given_folder_is_the_only_one_searched(machine: Path) -> None:
    put(machine / "shared" / "data" / "shop")
    with pytest.raises(
        UserError, match=r"nowhere: no such folder; --source takes the folder that holds log\.csv$"
    ):
        find_source(shop(), machine / "nowhere")
    (machine / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: no file log\.csv"):
        prepare(shop(), find_source(shop(), machine / "empty"), machine / "out")


def test_a_description_without_source_reads_its_own_folder(machine: Path) -> None:
    assert find_source(config_of(), None, machine / "logs") == machine / "logs"
    with pytest.raises(UserError, match=r"test: pass --source, the folder that holds log\.csv"):
        find_source(config_of(), None)


def test_names_globs_and_gz(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv.gz", "a.csv", "c.csv.gz", "c.txt"):
        put(tmp_path, name)
    put(tmp_path / "deep", "d.csv")

    def found(*patterns: str) -> list[str]:
        return [path.name for path in resolve_files(tmp_path, patterns)]

    assert found("*.csv") == ["a.csv", "b.csv", "c.csv.gz"]
    assert found("*.csv.gz") == ["a.csv", "b.csv", "c.csv.gz"]
    assert found("c.csv", "a.csv", "*.csv") == ["c.csv.gz", "a.csv", "b.csv"]
    assert found("**/d.csv", "deep/d.csv") == ["d.csv"]
    assert found() == []
    with pytest.raises(UserError, match=r"no file x\.csv or x\.csv\.gz; it holds a\.csv, a\.csv\.gz, b\.csv"):
        found("a.csv", "x.csv")


# Download


@pytest.fixture
def site(machine: Path) -> Iterator[tuple[Path, str]]:
    """A web server of our own on the loopback: (the folder it serves, its address)."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    folder = machine / "site"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def archive(**members: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        packed.mkdir("shop")
        for name, text in members.items():
            packed.writestr(name.replace("__", "/").replace("_csv", ".csv"), text)
    return buffer.getvalue()


def downloadable(site: tuple[Path, str], data: bytes, **source: Any) -> PrepareConfig:
    (site[0] / "shop.zip").write_bytes(data)
    return shop(**({"url": f"{site[1]}/shop.zip", "sha256": hashlib.sha256(data).hexdigest()} | source))


def test_download_once(machine: Path, site: tuple[Path, str]) -> None:
    config = downloadable(site, archive(shop__log_csv=CSV, shop__extra_csv="x"))
    steps: list[tuple[str, int, int]] = []
    folder = find_source(config, None, progress=lambda stage, done, total: steps.append((stage, done, total)))
    assert folder == machine / "cache" / "passerelle" / "shop"
    assert sorted(path.name for path in folder.iterdir()) == ["extra.csv", "log.csv"]
    assert histories(prepare(config, folder, machine / "out")) == {"u": ["a"]}
    assert steps[-1][1] == steps[-1][2]
    (site[0] / "shop.zip").unlink()
    assert find_source(config, None) == folder
    assert sorted(path.name for path in folder.parent.iterdir()) == ["shop"]


@pytest.mark.parametrize(
    ("data", "source", "message"),
    [
        (
            archive(log_csv=CSV),
            {"sha256": "0" * 64},
            r"the archive's SHA-256 is not the known one, it was not used: get it at https",
        ),
        (archive(other_csv=CSV), {}, r"the archive does not hold log\.csv: get it at"),
        (b"no archive", {}, r"cannot be downloaded \(File is not a zip file\): get it at"),
        (
            archive(log_csv=CSV),
            {"url": "http://127.0.0.1:9/shop.zip"},
            r"cannot be downloaded \(.*refused.*\): get it at https://example\.org/shop",
        ),
    ],
)
def test_failed_downloads_leave_nothing(
    data: bytes, source: dict[str, Any], message: str, machine: Path, site: tuple[Path, str]
) -> None:
    config = downloadable(site, data, **source)
    with pytest.raises(UserError, match=message):
        find_source(config, None)
    assert list((machine / "cache" / "passerelle").iterdir()) == []


def test_missing_archive(site: tuple[Path, str]) -> None:
    config = downloadable(site, archive(log_csv=CSV))
    (site[0] / "shop.zip").unlink()
    with pytest.raises(UserError, match=r"cannot be downloaded \(HTTP Error 404"):
        find_source(config, None)


def test_no_member_leads_out_of_the_folder(machine: Path, site: tuple[Path, str]) -> None:
    config = downloadable(site, archive(**{"..__..__evil_csv": "x", "log_csv": CSV}))
    folder = find_source(config, None)
    assert sorted(path.name for path in folder.iterdir()) == ["evil.csv", "log.csv"]
    assert not list((machine / "cache").glob("*.csv"))


def test_the_manifest_has_the_digest_of_every_raw_file(tmp_path: Path) -> None:
    (tmp_path / "logs" / "day").mkdir(parents=True)
    text = "u,i,t\na,x,1\nb,y,2\n"
    files = {"logs/one.csv": text, "logs/day/two.csv": text.replace("a", "c")}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "packed.csv.gz").write_bytes(gzip.compress(b"i,label\nx,one\n"))
    described = {
        "name": "t",
        "user_id_type": "string",
        "item_id_type": "string",
        "events": [{"files": ["logs/**/*.csv"], "user_id": "u", "item_id": "i", "timestamp": "t"}],
        "items": {
            "files": ["packed.csv"],
            "id": "i",
            "features": {"label": {"kind": "text", "column": "label"}},
        },
    }
    config = validate(PrepareConfig, described, "test", given=True)
    dataset = prepare(config, tmp_path, tmp_path / "dataset")
    assert open_dataset(dataset.path).manifest.raw_files == {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in (*files, "packed.csv.gz")
    }
    (tmp_path / "logs" / "one.csv").write_text("u,t\na,1\n")
    with pytest.raises(UserError):
        prepare(config, tmp_path, tmp_path / "dataset", overwrite=True)
