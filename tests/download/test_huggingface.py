"""The Hugging Face source against a hub on this machine that redirects to signed addresses, as the real one does."""

from __future__ import annotations

import hashlib
import io
import json
import random
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import download_dataset
from flair.dataset import catalog
from flair.download import huggingface, transfer
from flair.download.client import Client, Patience
from flair.download.huggingface import HuggingFaceSource
from flair.download.plan import DownloadConfig
from flair.download.run import Outcome, download
from flair.download.source import AppleSource
from flair.download.staging import UnpackError
from flair.errors import FlairError
from tests.support import fault_server
from tests.support.bounded_memory import bounded_memory
from tests.support.commands import Result, run_interrupted
from tests.support.fault_server import Fault, FaultServer
from tests.support.tiny_flair import make_photos, publish, tree

pa = pytest.importorskip("pyarrow", reason="the huggingface extra is not installed")
pq = pytest.importorskip("pyarrow.parquet", reason="the huggingface extra is not installed")

PHOTOS = make_photos(40)
BASE = f"/datasets/apple/flair/resolve/{catalog.HUGGINGFACE_REVISION}"
IMPATIENT = Patience(retries=2, jitter=lambda: 1.0, sleep=lambda seconds: None)
SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("image_id", pa.int64()),
        ("labels", pa.list_(pa.string())),
        ("partition", pa.string()),
        ("fine_grained_labels", pa.list_(pa.string())),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
    ]
)


def make_row(image_id: str, content: bytes, partition: str) -> dict[str, Any]:
    return {
        "user_id": f"{int(image_id) % 3}1111111@N0{catalog.PARTITIONS.index(partition)}",
        "image_id": int(image_id),
        "labels": ["animal", "plant"],
        "partition": partition,
        "fine_grained_labels": ["dog", "tree"],
        "image": {"bytes": content, "path": f"{image_id}.jpg"},
    }


def to_parquet(rows: list[dict[str, Any]], schema: Any = SCHEMA, row_group_size: int = 4) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, row_group_size=row_group_size)
    return buffer.getvalue()


class Hub:
    """Ten photos a shard; `rows` in the order of the shards."""

    def __init__(self, server: FaultServer, photos: dict[str, bytes] = PHOTOS) -> None:
        self.server, self.rows, self.paths = server, [], []
        ids = iter(photos.items())
        for partition, count in catalog.HUGGINGFACE_SHARDS.items():
            for index in range(count):
                rows = [make_row(*next(ids), partition) for _ in range(10)]
                self.rows += rows
                path = catalog.huggingface_shard(partition, index)
                self.paths.append(path)
                self.put(path, to_parquet(rows))
        server.files[f"{BASE}/{catalog.TAXONOMY_FILE}"] = b"dog -> animal\ntree -> plant\n"
        server.files[f"{BASE}/{catalog.ATTRIBUTION_FILE}"] = "10000000000: © someone\n".encode()

    def put(self, path: str, content: bytes, *, linked: bool = True) -> None:
        self.server.files[f"/cdn/{path}?signed"] = content
        headers = [("Location", f"/cdn/{path}?signed")]
        if linked:
            digest = hashlib.sha256(content).hexdigest()
            headers += [("X-Linked-Size", str(len(content))), ("X-Linked-ETag", f'"{digest}"')]
        self.server.redirects[f"{BASE}/{path}"] = tuple(headers)

    def signed(self, index: int) -> str:
        return f"/cdn/{self.paths[index]}?signed"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(catalog, "HUGGINGFACE_SHARDS", {"train": 2, "val": 1, "test": 1})
    with fault_server.serve() as server:
        yield Hub(server)


def bring(hub: Hub, folder: Path, **options: object) -> Outcome:
    source = HuggingFaceSource(hub.server.url)
    return download(source, DownloadConfig(folder, **{"patience": IMPATIENT, "num_workers": 2, **options}))  # type: ignore[arg-type]


def whole_gets(hub: Hub) -> list[str]:
    return [request.path for request in hub.server.gets() if request.path.startswith("/cdn/") and not request.range]


def expected_records(hub: Hub) -> list[dict[str, Any]]:
    keys = ("user_id", "image_id", "labels", "partition", "fine_grained_labels")
    return [{key: str(row[key]) if key == "image_id" else row[key] for key in keys} for row in hub.rows]


def check_complete(hub: Hub, folder: Path) -> None:
    assert {path.stem: path.read_bytes() for path in (folder / "small_images").iterdir()} == PHOTOS
    check_metadata(hub, folder)
    names = [str(path.relative_to(folder)) for path in folder.rglob("*")]
    assert not [
        name for name in names if ".part" in name.replace(".parquet", "") or ".tmp" in name or "records" in name
    ]


def check_metadata(hub: Hub, folder: Path) -> None:
    text = (folder / "labels_and_metadata.json").read_text(encoding="utf-8")
    # The official file is exactly this spelling: keys in this order, four spaces.
    assert text == json.dumps(expected_records(hub), indent=4, ensure_ascii=False) + "\n"
    for name in (catalog.TAXONOMY_FILE, catalog.ATTRIBUTION_FILE):
        assert (folder / name).read_bytes() == hub.server.files[f"{BASE}/{name}"]


def test_the_same_dataset_folder_as_from_apple(hub: Hub, tmp_path: Path) -> None:
    outcome = bring(hub, tmp_path)
    assert (outcome.failed, outcome.notes) == ([], [])
    assert (outcome.archives, outcome.all_archives) == (4, 4)
    assert outcome.photos == {"small_images": (40, 40 * 3000)}
    check_complete(hub, tmp_path)


def test_the_spelling_of_the_metadata_is_that_of_the_official_file(flair_sample: Path) -> None:
    official = (flair_sample / "labels_and_metadata.json").read_text(encoding="utf-8")
    assert official.strip() == json.dumps(json.loads(official), indent=4, ensure_ascii=False)
    assert list(json.loads(official)[0]) == ["user_id", "image_id", "labels", "partition", "fine_grained_labels"]


def test_the_official_shards() -> None:
    archives = HuggingFaceSource().archives(Client(), Path(), raw=False)
    base = f"https://huggingface.co{BASE}/data"
    assert len(archives) == 14
    assert archives[0].url == f"{base}/train-00000-of-00010.parquet"
    assert archives[13].url == f"{base}/test-00001-of-00002.parquet"


def test_a_second_run_fetches_nothing(hub: Hub, tmp_path: Path) -> None:
    bring(hub, tmp_path)
    before = tree(tmp_path)
    hub.server.requests.clear()
    assert bring(hub, tmp_path).fetched_archives == 0
    assert hub.server.requests == []
    assert tree(tmp_path) == before


def test_labels_are_read_without_the_photos(hub: Hub, tmp_path: Path) -> None:
    photo_bytes = 200_000
    rows = [
        make_row(image_id, bytes([index]) * photo_bytes, "train") for index, image_id in enumerate(list(PHOTOS)[:10])
    ]
    hub.rows[:10] = rows
    hub.put(hub.paths[0], to_parquet(rows))
    bring(hub, tmp_path, only_metadata=True)
    check_metadata(hub, tmp_path)
    assert not (tmp_path / "small_images").exists()
    assert whole_gets(hub) == []
    assert sum(request.sent for request in hub.server.gets(hub.signed(0))) < photo_bytes


def kill_while_labels_are_read(hub: Hub, folder: Path) -> None:
    """A run that has the labels of some shards when the hub goes away."""
    paths = (hub.signed(3), f"{BASE}/{hub.paths[3]}")
    for path in paths:
        hub.server.faults[path] = [Fault(status=500)] * 99
    with pytest.raises(FlairError, match=r"cannot read the labels of test-00000"):
        bring(hub, folder)
    assert len(list(folder.glob(".download/records-*/*.parquet"))) == 3
    for path in paths:
        hub.server.faults[path] = []


def label_requests(hub: Hub) -> set[int]:
    """Indexes of the shards that were asked for parts."""
    return {index for index in range(4) if any(request.range for request in hub.server.gets(hub.signed(index)))}


def test_labels_of_a_killed_run_are_kept_for_the_same_endpoint_and_revision_only(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dropped = "labels that an unfinished run read from another source, endpoint or revision are dropped"
    kill_while_labels_are_read(hub, tmp_path)
    hub.server.requests.clear()
    bring(hub, tmp_path, only_metadata=True)
    assert label_requests(hub) == {3}
    assert dropped not in capsys.readouterr().err

    (tmp_path / "labels_and_metadata.json").unlink()
    kill_while_labels_are_read(hub, tmp_path)
    with fault_server.serve() as server:
        other = Hub(server)
        for row in other.rows:
            row["labels"] = ["animal"]
        for index, path in enumerate(other.paths):
            other.put(path, to_parquet(other.rows[10 * index : 10 * index + 10]))
        bring(other, tmp_path, only_metadata=True)
        assert label_requests(other) == {0, 1, 2, 3}
        check_metadata(other, tmp_path)
    assert dropped in capsys.readouterr().err


def test_labels_of_a_killed_run_are_removed_when_the_folder_is_filled_from_apple(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kill_while_labels_are_read(hub, tmp_path)
    with fault_server.serve() as server:
        publish(server, PHOTOS, 2)
        assert download(AppleSource(server.url), DownloadConfig(tmp_path, patience=IMPATIENT)).failed == []
        assert "read from another source, endpoint or revision are dropped" in capsys.readouterr().err
        download(AppleSource(server.url), DownloadConfig(tmp_path / "new", patience=IMPATIENT))
    mixed = tree(tmp_path)
    assert {name[4:]: mixed.pop(name) for name in list(mixed) if name.startswith("new/")} == mixed
    assert not list(tmp_path.rglob("records-*"))


def test_a_whole_shard_of_another_revision_is_not_read_for_labels(hub: Hub, tmp_path: Path) -> None:
    bring(hub, tmp_path, limit_archives=1)
    part = tmp_path / ".download" / "train-00000-of-00002.parquet.part"
    transfer.fetch(Client(IMPATIENT), f"{hub.server.url}{BASE}/{hub.paths[0]}", part, expect="parquet")
    revision = "a" * 40
    for path in list(hub.server.redirects):
        hub.server.redirects[path.replace(catalog.HUGGINGFACE_REVISION, revision)] = hub.server.redirects.pop(path)
    for path in list(hub.server.files):
        hub.server.files[path.replace(catalog.HUGGINGFACE_REVISION, revision)] = hub.server.files[path]
    hub.rows[0]["labels"] = ["animal"]
    content = to_parquet(hub.rows[:10])
    hub.server.files["/cdn/new"] = content
    hub.server.redirects[f"{BASE.replace(catalog.HUGGINGFACE_REVISION, revision)}/{hub.paths[0]}"] = (
        ("Location", "/cdn/new"),
        ("X-Linked-Size", str(len(content))),
    )
    source = HuggingFaceSource(hub.server.url, revision)
    download(source, DownloadConfig(tmp_path, patience=IMPATIENT, only_metadata=True))
    assert json.loads((tmp_path / "labels_and_metadata.json").read_text())[0]["labels"] == ["animal"]


def test_limit_takes_the_first_shards_and_all_metadata(hub: Hub, tmp_path: Path) -> None:
    outcome = bring(hub, tmp_path, limit_archives=2)
    assert (outcome.failed, outcome.archives) == ([], 2)
    check_metadata(hub, tmp_path)
    assert {path.stem for path in (tmp_path / "small_images").iterdir()} == set(list(PHOTOS)[:20])


def test_a_hub_that_ignores_range_sends_every_shard_once(hub: Hub, tmp_path: Path) -> None:
    for path in list(hub.server.files):
        hub.server.faults[path] = [Fault(ignore_range=True)] * 9
    assert bring(hub, tmp_path).failed == []
    check_complete(hub, tmp_path)
    assert len(whole_gets(hub)) == 4


def test_a_hub_that_ignores_range_is_asked_again_once_its_labels_are_mended(hub: Hub, tmp_path: Path) -> None:
    good = hub.server.files[hub.signed(0)]
    hub.put(hub.paths[0], to_parquet([row | {"user_id": "../../x"} for row in hub.rows[:10]]))
    for path in list(hub.server.files):
        hub.server.faults[path] = [Fault(ignore_range=True)] * 9
    with pytest.raises(FlairError, match="user_id"):
        bring(hub, tmp_path)
    hub.put(hub.paths[0], good)
    assert bring(hub, tmp_path).failed == []
    check_complete(hub, tmp_path)


def test_a_shard_that_has_arrived_in_part_stays_where_labels_cannot_be_read(hub: Hub, tmp_path: Path) -> None:
    bring(hub, tmp_path, only_metadata=True)
    hub.server.faults[hub.signed(0)] = [Fault(drop_after=20_000), *[Fault(status=404)] * 99]
    assert bring(hub, tmp_path).failed
    (part,) = (tmp_path / ".download").glob("*.part")
    (tmp_path / "labels_and_metadata.json").unlink()
    with pytest.raises(FlairError, match="cannot read the labels of train-00000"):
        bring(hub, tmp_path)
    assert part.stat().st_size == 20_000


def test_a_hub_that_does_not_tell_sizes(hub: Hub, tmp_path: Path) -> None:
    hub.put(hub.paths[3], hub.server.files[hub.signed(3)], linked=False)
    assert bring(hub, tmp_path).failed == []
    check_complete(hub, tmp_path)


def test_a_drop_in_the_middle_of_a_shard_resumes(hub: Hub, tmp_path: Path) -> None:
    bring(hub, tmp_path, only_metadata=True)
    hub.server.faults[hub.signed(0)] = [Fault(drop_after=20_000)]
    hub.server.requests.clear()
    assert bring(hub, tmp_path).failed == []
    assert [request.range for request in hub.server.gets(hub.signed(0))] == [None, "bytes=20000-"]
    check_complete(hub, tmp_path)


def test_a_signed_address_that_expires_is_asked_for_again(hub: Hub, tmp_path: Path) -> None:
    hub.server.faults[hub.signed(0)] = [Fault(), Fault(status=403), Fault(), Fault(status=403)]
    bring(hub, tmp_path, only_metadata=True)
    check_metadata(hub, tmp_path)


def test_a_shard_that_is_not_the_published_one(hub: Hub, tmp_path: Path) -> None:
    bring(hub, tmp_path, only_metadata=True)
    content = bytearray(hub.server.files[hub.signed(0)])
    content[100] ^= 1
    hub.server.files[hub.signed(0)] = bytes(content)
    (line,) = bring(hub, tmp_path).failed
    assert line.startswith("train-00000-of-00002.parquet: has the sha256 ")
    assert line.endswith("is published; fetched twice, wrong both times, so the server's copy is bad")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.update(image_id=-5), r"row 1: image_id '-5' is not an id"),
        (lambda row: row.update(image_id=None), r"row 1: column 'image_id' must be a whole number, found None"),
        (lambda row: row.update(user_id=None), r"row 1: column 'user_id' must be a string, found None"),
        (lambda row: row.update(labels=None), r"row 1: column 'labels' must be a list of names, found None"),
        (lambda row: row.update(labels=[None]), r"row 1: column 'labels' must be a list of names"),
        (lambda row: row.update(partition="dev"), r"field 'partition' must be one of train, val, test, found 'dev'"),
    ],
)
def test_records_that_are_not_flairs(
    hub: Hub, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    change(hub.rows[1])
    hub.put(hub.paths[0], to_parquet(hub.rows[:10]))
    with pytest.raises(FlairError, match=message):
        bring(hub, tmp_path)
    assert not (tmp_path / "labels_and_metadata.json").exists()


def test_a_shard_of_another_dataset(hub: Hub, tmp_path: Path) -> None:
    table = pa.table({"text": ["a"]})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    hub.put(hub.paths[3], buffer.getvalue())
    with pytest.raises(FlairError, match=r"test-00000-of-00001\.parquet: has no column fine_grained_labels, image_id,"):
        bring(hub, tmp_path)


def test_what_is_no_parquet_file(hub: Hub, tmp_path: Path) -> None:
    hub.put(hub.paths[0], b"PAR1" + bytes(5000) + b"PAR1")
    with pytest.raises(FlairError, match=r"train-00000-of-00002\.parquet: is no parquet file, or damaged"):
        bring(hub, tmp_path)


@pytest.mark.parametrize("rows", ["records", "photos"])
def test_a_value_that_is_said_of_many_rows_is_not_made_many_times(tmp_path: Path, rows: str) -> None:
    """Kilobytes became gigabytes: rows of eight megabytes each, all the same."""
    large = "x" * (8 << 20)
    row = make_row("1", large.encode(), "train") if rows == "photos" else make_row("1", b"x", "train")
    changed = row | {"user_id": large} if rows == "records" else row
    many = [changed | {"image_id": number} for number in range(1, 41)]
    (tmp_path / "s").write_bytes(to_parquet(many, row_group_size=40))
    del many, changed, row
    script = (
        "import sys; from pathlib import Path; from benchmark.run.machine import peak_bytes\n"
        "from flair.download import huggingface; from flair.errors import FlairError; import pyarrow.parquet\n"
        "folder = Path(sys.argv[1])\n"
        "try:\n"
        "    huggingface.unpack(folder / 's', folder / 'p', 's', folder / 'l', 4 << 20) if sys.argv[2] == 'photos' else"
        " [None for _ in huggingface.read_records(open(folder / 's', 'rb'), 's')]\n"
        "except FlairError as error: print(error)\n"
        "print(peak_bytes())"
    )
    output = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), rows], capture_output=True, text=True, check=True,
        cwd=Path(download_dataset.__file__).parent,
    )  # fmt: skip
    assert int(output.stdout.splitlines()[-1]) < 200_000_000, output.stdout


@pytest.mark.parametrize("rows", ["records", "photos"])
def test_a_page_that_unpacks_to_much_more_is_refused(tmp_path: Path, rows: str) -> None:
    part = "x" * (1 << 20)
    row = make_row("1", part.encode(), "train") if rows == "photos" else make_row("1", b"x", "train")
    many = [row | {"image_id": number, **({"user_id": part} if rows == "records" else {})} for number in range(1, 201)]
    table = pa.Table.from_pylist(many, schema=SCHEMA)
    pq.write_table(table, tmp_path / "s", compression="zstd", use_dictionary=False, data_page_size=1 << 30)
    assert (tmp_path / "s").stat().st_size < 200_000
    read: dict[str, Callable[[], object]] = {
        "photos": lambda: unpack(tmp_path, (tmp_path / "s").read_bytes()),
        "records": lambda: list(huggingface.read_records((tmp_path / "s").open("rb"), "s")),
    }
    with bounded_memory(50_000_000), pytest.raises(FlairError, match=r"would unpack to 2\d\d,\d{3},\d{3}, which no"):
        read[rows]()


def test_a_path_in_place_of_an_id_or_a_user_is_refused(hub: Hub, tmp_path: Path) -> None:
    rows = [{**row, "image_id": "../../../etc/passwd"} for row in hub.rows[:2]]
    schema = SCHEMA.set(SCHEMA.get_field_index("image_id"), pa.field("image_id", pa.string()))
    with pytest.raises(UnpackError, match=r"row 0: column 'image_id' must be a whole number, found '\.\./\.\./"):
        unpack(tmp_path, to_parquet(rows, schema))
    hub.rows[0]["user_id"] = "../../home"
    hub.put(hub.paths[0], to_parquet(hub.rows[:10]))
    with pytest.raises(FlairError, match=r"user_id '\.\./\.\./home' is not an id .*; refused"):
        bring(hub, tmp_path / "dataset")
    assert not (tmp_path / "dataset" / "labels_and_metadata.json").exists()
    photo = make_row("17", b"jpeg", "train") | {"image": {"bytes": b"jpeg", "path": "../../../escaped.jpg"}}
    unpack(tmp_path, to_parquet([photo]))
    assert [path.name for path in (tmp_path / "small_images").iterdir()] == ["17.jpg"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([2**62], pa.duration("s")),
        pa.array([2**31 - 1], pa.int32()).cast(pa.date32()),
        pa.array([10**18 + 1], pa.int64()).cast(pa.timestamp("ns")),
    ],
    ids=["duration", "date", "nanoseconds"],
)
def test_a_column_that_python_cannot_have_is_damage_not_a_traceback(column: Any) -> None:
    table = pa.Table.from_pylist([make_row("1", b"x", "train")], schema=SCHEMA)
    index = table.schema.get_field_index("image_id")
    buffer = io.BytesIO()
    pq.write_table(table.set_column(index, "image_id", column), buffer)
    buffer.seek(0)
    with pytest.raises(FlairError, match="or damaged"):
        list(huggingface.read_records(io.BufferedReader(buffer), "s"))  # type: ignore[arg-type]


def test_what_a_shard_says_of_itself_does_not_fill_the_memory(hub: Hub, tmp_path: Path) -> None:
    footer = 70_000_000
    hub.put(hub.paths[0], b"PAR1" + bytes(footer) + struct.pack("<I", footer) + b"PAR1")
    with pytest.raises(FlairError, match=r"has a part of 70,000,000 bytes beside its photos; refused"):
        bring(hub, tmp_path)
    assert hub.server.body_bytes < 1_000_000


def unpack(tmp_path: Path, content: bytes) -> Any:
    (tmp_path / "shard").write_bytes(content)
    return huggingface.unpack(tmp_path / "shard", tmp_path / "small_images", "shard", tmp_path / "list", 10_000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.update(image=None), r"row 1 has no photo in column 'image'; refused"),
        (lambda row: row.update(image={"bytes": None, "path": "/etc/passwd"}), r"row 1 has no photo in column 'image'"),
        (lambda row: row.update(image={"bytes": bytes(20_000), "path": ""}), r"would have 20,000 bytes, more than the"),
        (lambda row: row.update(image_id=10_000_000_000), r"holds photo '10000000000' twice; refused"),
        (lambda row: row.update(image_id=-1), r"image_id '-1' is not an id"),
    ],
)
def test_photos_that_are_not_flairs(
    hub: Hub, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    rows = hub.rows[:10]
    change(rows[1])
    with pytest.raises(UnpackError, match=message) as caught:
        unpack(tmp_path, to_parquet(rows))
    assert not caught.value.corrupt
    assert list((tmp_path / "small_images").iterdir()) == []


def test_a_damaged_shard_is_worth_another_try(hub: Hub, tmp_path: Path) -> None:
    content = hub.server.files[hub.signed(0)]
    with pytest.raises(UnpackError, match=r"is no parquet file, or damaged") as caught:
        unpack(tmp_path, content[:-100])
    assert caught.value.corrupt


def test_a_shard_of_one_row_group_needs_no_more_memory_the_longer_it_is(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from benchmark.run.machine import peak_bytes\n"
        "from flair.download import huggingface; import pyarrow.parquet\n"
        "before = peak_bytes()\n"
        "folder = Path(sys.argv[1])\n"
        "huggingface.unpack(folder / 's', folder / 'p', 's', folder / 'l', 100_000)\n"
        "print(peak_bytes() - before)"
    )
    generator = random.Random(0)
    peaks = []
    for num_rows in (2000, 8000):
        rows = [make_row(str(image_id), generator.randbytes(15_000), "train") for image_id in range(1, num_rows + 1)]
        folder = tmp_path / str(num_rows)
        folder.mkdir()
        (folder / "s").write_bytes(to_parquet(rows, row_group_size=num_rows))
        output = subprocess.run(
            [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True,
            cwd=Path(download_dataset.__file__).parent,
        )  # fmt: skip
        peaks.append(int(output.stdout))
    assert peaks[1] - peaks[0] < 45_000_000  # of 90 MB more


def test_without_pyarrow_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FlairError, match=r"needs pyarrow, which is not installed; .*-r requirements/huggingface\.txt"):
        download_dataset.main([f"--dataset_dir={tmp_path / 'd'}", "--source=huggingface"])
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGINT"])
def test_killed_while_shards_are_read_and_brought(tmp_path: Path, signal_name: str) -> None:
    photos = make_photos(140)
    with fault_server.serve() as server:
        hub = Hub(server, photos)  # of 14 shards: the command in a process of its own knows no others
        flags = ("--source=huggingface", "--num_workers=2")
        endpoint = {"HF_ENDPOINT": server.url}
        unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"

        def ended(stop_at: int, folder: Path) -> Result:
            folder_flag = f"--dataset_dir={folder}"
            return run_interrupted(signal_name, stop_at, "download_dataset.py", folder_flag, *flags, env=endpoint)

        whole = ended(0, unbroken)
        assert whole.returncode == 0, whole.stderr
        operations = int(whole.stderr.splitlines()[-1])
        # Among the labels, among the photos.
        codes = [ended(stop_at, killed).returncode for stop_at in (operations // 6, operations // 2)]
        assert codes[0] == (-signal.SIGKILL if signal_name == "SIGKILL" else 130)
        server.requests.clear()
        last = ended(0, killed)
        assert last.returncode == 0, last.stderr
        assert len(whole_gets(hub)) < 14, "what was finished is not fetched again"
        assert tree(killed) == tree(unbroken)
        assert {path.stem: path.read_bytes() for path in (killed / "small_images").iterdir()} == photos
        check_metadata(hub, killed)


def test_hf_endpoint_is_honoured(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.server.url + "/")
    assert download_dataset.main([f"--dataset_dir={tmp_path}", "--source=huggingface"]) == 0
    check_complete(hub, tmp_path)
    assert f"from {hub.server.url}{BASE}" in capsys.readouterr().out
