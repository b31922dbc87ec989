"""Archives from nobody one has to trust: good ones come out whole, bad ones leave nothing behind."""

from __future__ import annotations

import gzip
import io
import random
import resource
import tarfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flair.download import archive as archive_module
from flair.download.archive import unpack
from flair.download.staging import Staging, Unpacked, UnpackError, read_listing
from tests.support.bounded_memory import bounded_memory
from tests.support.tiny_flair import make_photos, make_tar_gz

MAX_PHOTO_BYTES = 1 << 20
Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"photo", kind: bytes = tarfile.REGTYPE, target: str = "") -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    info.size = len(content) if kind == tarfile.REGTYPE else 0
    return info, content


def pack(*members: Member, tar_format: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tar_format) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


class Place:
    """A dataset folder with something in it that nothing may touch."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.photos_dir = root / "dataset" / "small_images"
        self.photos_dir.mkdir(parents=True)
        (self.photos_dir / "1.jpg").write_bytes(b"before")
        (root / "outside.jpg").write_bytes(b"outside")

    def unpack(self, content: bytes, name: str = "a.tar.gz") -> Unpacked:
        archive = self.root / f"{name}.part"
        archive.write_bytes(content)
        try:
            return unpack(archive, self.photos_dir, name, self.root / f"{name}.photos", MAX_PHOTO_BYTES)
        finally:
            archive.unlink()

    def files(self) -> dict[str, bytes]:
        everything = self.root.rglob("*")
        return {str(path.relative_to(self.root)): path.read_bytes() for path in everything if path.is_file()}


UNTOUCHED = {"dataset/small_images/1.jpg": b"before", "outside.jpg": b"outside"}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def refuse(place: Place, content: bytes, message: str, *, corrupt: bool = False) -> None:
    with pytest.raises(UnpackError, match=message) as caught:
        place.unpack(content)
    assert caught.value.corrupt is corrupt
    assert place.files() == UNTOUCHED
    assert sorted(path.name for path in place.photos_dir.iterdir()) == ["1.jpg"]


def test_a_good_archive_comes_out_byte_for_byte(place: Place) -> None:
    photos = make_photos(50)
    unpacked = place.unpack(make_tar_gz(photos))
    assert unpacked == Unpacked(50, sum(map(len, photos.values())))
    assert {path.stem: path.read_bytes() for path in place.photos_dir.iterdir()} == {**photos, "1": b"before"}
    assert read_listing(place.root / "a.tar.gz.photos") == {
        image_id: len(content) for image_id, content in photos.items()
    }


def test_unpacking_again_changes_nothing(place: Place) -> None:
    content = make_tar_gz(make_photos(5))
    place.unpack(content)
    before = place.files()
    place.unpack(content)
    assert place.files() == before


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_folders_and_long_names_of_every_tar_format(place: Place, tar_format: int) -> None:
    names = ["7.jpg", "./8.jpg", "small_images/9.jpg", f"{'d' * 90}/{'e' * 40}/10.jpg"]
    place.unpack(pack(*[member(name, name.encode()) for name in names], tar_format=tar_format))
    assert {path.name for path in place.photos_dir.iterdir()} == {"1.jpg", "7.jpg", "8.jpg", "9.jpg", "10.jpg"}
    assert (place.photos_dir / "10.jpg").read_bytes() == names[3].encode()


def test_files_that_are_no_photos_are_left_out_and_counted(place: Place) -> None:
    content = pack(member("small_images/.DS_Store"), member("2.jpg"), member("small_images/._2.jpg"), member("a.txt"))
    assert place.unpack(content) == Unpacked(1, 5, 3, "small_images/.DS_Store")
    assert {path.name for path in place.photos_dir.iterdir()} == {"1.jpg", "2.jpg"}


def test_gzip_of_several_streams_and_padding(place: Place) -> None:
    tar = gzip.decompress(make_tar_gz(make_photos(5)))
    place.unpack(gzip.compress(tar[:4000]) + gzip.compress(tar[4000:]) + bytes(300_000))
    assert len(list(place.photos_dir.iterdir())) == 6


@pytest.mark.parametrize("name", ["../outside.jpg", "small_images/../../../outside.jpg", "a/..", "..\\outside.jpg"])
def test_dot_dot_in_a_name(place: Place, name: str) -> None:
    refuse(place, pack(member("2.jpg"), member(name)), r"would leave the dataset folder; the archive is refused")


def test_absolute_path(place: Place) -> None:
    refuse(place, pack(member("2.jpg"), member(f"{place.root}/outside.jpg")), r"would leave the dataset folder")


def test_symbolic_link(place: Place) -> None:
    link = member("small_images/2.jpg", b"", tarfile.SYMTYPE, "../../outside.jpg")
    refuse(place, pack(link, member("small_images/2.jpg")), r"'small_images/2\.jpg' is a symbolic link, not a photo")


def test_symbolic_link_to_a_folder_under_later_members(place: Place) -> None:
    link = member("small_images", b"", tarfile.SYMTYPE, "..")
    refuse(place, pack(link, member("small_images/outside.jpg")), r"is a symbolic link, not a photo")


def test_hard_link(place: Place) -> None:
    refuse(place, pack(member("2.jpg", b"", tarfile.LNKTYPE, "outside.jpg")), r"'2\.jpg' is a hard link, not a photo")


@pytest.mark.parametrize(
    ("kind", "word"), [(tarfile.CHRTYPE, "device"), (tarfile.BLKTYPE, "device"), (tarfile.FIFOTYPE, "named pipe")]
)
def test_device(place: Place, kind: bytes, word: str) -> None:
    refuse(place, pack(member("2.jpg", b"", kind)), rf"'2\.jpg' is a {word}, not a photo; the archive is refused")


@pytest.mark.parametrize("name", [".hidden.jpg", "a b.jpg", "-rf.jpg", "x" * 200 + ".jpg", "é.jpg", ".jpg"])
def test_unsafe_photo_names(place: Place, name: str) -> None:
    refuse(place, pack(member(f"small_images/{name}")), r"is not an id .*refused, because ids become file names")


def test_a_photo_that_occurs_twice(place: Place) -> None:
    refuse(place, pack(member("a/2.jpg"), member("b/2.jpg")), r"holds photo '2' twice; refused")


@pytest.mark.parametrize("names", [("a.tar.gz", "b.tar.gz"), ("b.tar.gz", "a.tar.gz")])
@pytest.mark.parametrize("other", [b"other", b"longer than before"])
def test_a_photo_of_another_archive_is_not_replaced(place: Place, names: tuple[str, str], other: bytes) -> None:
    first, second = names
    place.unpack(pack(member("2.jpg", b"photo"), member("3.jpg")), first)
    before = place.files()
    with pytest.raises(UnpackError, match=rf"brings photo '2' with other bytes than {first}, .* refused") as caught:
        place.unpack(pack(member("4.jpg"), member("2.jpg", other)), second)
    assert (caught.value.corrupt, caught.value.rival) == (False, first)
    assert place.files() == before
    place.unpack(pack(member("2.jpg", b"photo"), member("4.jpg")), second)
    assert len(place.files()) == len(before) + 2, "the same bytes may come twice"
    with pytest.raises(UnpackError, match=r"brings photo '2' with other bytes than [ab]\.tar\.gz, "):
        place.unpack(pack(member("2.jpg", other)), "c.tar.gz")


def test_an_archive_replaces_its_own_photos_and_those_that_have_changed_since(place: Place) -> None:
    place.unpack(pack(member("2.jpg", b"first"), member("1.jpg", b"was nobody's")))
    place.unpack(pack(member("2.jpg", b"again")))
    assert (place.photos_dir / "2.jpg").read_bytes() == b"again"
    (place.photos_dir / "2.jpg").write_bytes(b"cut")
    place.unpack(pack(member("2.jpg", b"other")), "b.tar.gz")
    assert (place.photos_dir / "2.jpg").read_bytes() == b"other"


def test_ids_that_differ_in_case_only(place: Place) -> None:
    staging = Staging(place.photos_dir, "a.tar.gz", MAX_PHOTO_BYTES)
    (staging.folder / "Abc.jpg").write_bytes(b"what such a file system opens under the name of abc.jpg")
    with pytest.raises(UnpackError, match=r"holds photo 'Abc' and one whose id differs in case only"):
        staging.add("Abc", b"photo")
    staging.discard()
    place.unpack(pack(member("x.jpg", b"1st")))
    (place.photos_dir / "X.jpg").write_bytes(b"1st")
    with pytest.raises(UnpackError, match=r"brings photo 'X' with other bytes than a\.tar\.gz"):
        place.unpack(pack(member("X.jpg", b"2nd")), "b.tar.gz")


@pytest.mark.parametrize("line", ["2 \u0665", "2 5_0", "2 -5", "2", "2 5 5", "2 " + "9" * 5000])
def test_a_damaged_listing_lists_nothing(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.photos").write_text(f"1 7\n{line}\n", encoding="utf-8")
    assert read_listing(tmp_path / "a.photos") == {}


def test_no_photo_at_all(place: Place) -> None:
    refuse(place, pack(member("readme.txt")), r"holds no photo; refused")


def test_zip_bomb_of_one_huge_photo(place: Place) -> None:
    bomb = gzip.compress(pack_header("2.jpg", 10 << 30) + bytes(1 << 20))
    refuse(place, bomb, r"photo '2' would have 10,737,418,240 bytes, more than the 1,048,576 that are plausible")


def test_headers_for_all_members_do_not_add_up(place: Place) -> None:
    """Four hundred of a megabyte each, which tarfile keeps: 683 MB, and then a word about recursion."""
    tar = io.BytesIO()
    for number in range(120):
        tar.write(tarfile.TarInfo.create_pax_global_header({f"k{number}": "v" * 30_000}))
    with bounded_memory(64 << 20):
        refuse(place, gzip.compress(tar.getvalue() + pack_header("1.jpg", 10)), r"has (hundreds of headers|headers of)")


def test_zip_bomb_of_ten_thousand_times_its_size(place: Place) -> None:
    # A member that is no photo, so that only the total can stop it: 10 GB of zeros in 10 MB, in streams of 100 MB.
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    start = compressor.compress(pack_header("zeros.bin", 10 << 30)) + compressor.flush()
    stream = gzip.compress(bytes(100 << 20))
    with bounded_memory(64 << 20):
        refuse(place, start + stream * 100, r"unpacks to more than 194 MiB, which photos cannot: a zip bomb\? refused")


def test_zip_bomb_behind_the_end_mark(place: Place) -> None:
    refuse(place, make_tar_gz(make_photos(2)) + gzip.compress(bytes(100 << 20)), r"a zip bomb\? refused")


def test_zip_bomb_of_many_small_photos(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "MIN_UNPACKED_LIMIT", 2 << 20)
    tar = b"".join(pack_header(f"{index}.jpg", 1000) + bytes(1024) for index in range(2, 3000))
    refuse(place, gzip.compress(tar), r"unpacks to more than 2 MiB")


def test_a_name_of_a_gigabyte(place: Place) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    refuse(place, gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20)), r"has a header of 1,073,741,824 by")


def pack_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def test_truncated_gzip(place: Place) -> None:
    refuse(place, make_tar_gz(make_photos(20))[:-2000], r"is damaged: the gzip ends in the middle", corrupt=True)


def test_corrupt_gzip(place: Place) -> None:
    content = bytearray(make_tar_gz(make_photos(20)))
    content[-6] ^= 1  # in the checksum: every photo but the last looks right
    refuse(place, bytes(content), r"is damaged: CRC check failed", corrupt=True)


def test_no_gzip_at_all(place: Place) -> None:
    refuse(place, b"<html>Please log in</html>", r"is damaged: Not a gzipped file", corrupt=True)


def test_empty_file(place: Place) -> None:
    refuse(place, b"", r"is damaged: the gzip ends in the middle", corrupt=True)


def test_no_tar_in_the_gzip(place: Place) -> None:
    refuse(place, gzip.compress(b"not a tar " * 1000), r"is no tar archive", corrupt=True)


def test_a_damaged_header_in_the_middle_is_not_taken_for_the_end(place: Place) -> None:
    tar = bytearray(gzip.decompress(make_tar_gz(make_photos(5))))
    tar[512 + (512 + 3072) * 2] ^= 1  # tarfile alone would end here without a word
    refuse(place, gzip.compress(bytes(tar)), r"the tar inside it ends without an end mark", corrupt=True)


@pytest.mark.parametrize("cut", [512, 512 + 512 + 100, (512 + 3072) * 2 + 512])
def test_a_tar_cut_off_inside_a_whole_gzip(place: Place, cut: int) -> None:
    tar = gzip.decompress(make_tar_gz(make_photos(5)))
    refuse(place, gzip.compress(tar[:cut]), r"is damaged: ", corrupt=True)


def test_a_leftover_of_a_killed_run_does_not_get_in(place: Place) -> None:
    leftover = place.photos_dir / ".a.tar.gz.tmp"
    leftover.mkdir()
    (leftover / "666.jpg").write_bytes(b"half a pho")
    place.unpack(make_tar_gz(make_photos(3)))
    assert not leftover.exists()
    assert not (place.photos_dir / "666.jpg").exists()


GOOD = make_tar_gz(make_photos(6))


@given(position=st.integers(10, len(GOOD) - 1), bit=st.integers(0, 7))
@settings(max_examples=50, deadline=None)
def test_one_flipped_bit_in_the_gzip_never_changes_a_photo(
    tmp_path_factory: pytest.TempPathFactory, position: int, bit: int
) -> None:
    place = Place(tmp_path_factory.mktemp("bit"))
    content = bytearray(GOOD)
    content[position] ^= 1 << bit
    try:
        place.unpack(bytes(content))
    except UnpackError:
        assert place.files() == UNTOUCHED
    else:  # deflate has a few bits that nothing depends on
        unpacked = {path.stem: path.read_bytes() for path in place.photos_dir.iterdir()}
        assert unpacked == {**make_photos(6), "1": b"before"}


@given(changes=st.lists(st.tuples(st.integers(0, 30_000), st.integers(0, 255)), min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_whatever_the_tar_says_nothing_outside_is_touched(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    place = Place(tmp_path_factory.mktemp("tar"))
    tar = bytearray(gzip.decompress(GOOD))
    for position, value in changes:
        tar[position % len(tar)] = value
    try:
        place.unpack(gzip.compress(bytes(tar), 1))
    except UnpackError:
        assert place.files() == UNTOUCHED
    else:
        files = place.files()
        assert files.pop("outside.jpg") == b"outside"
        assert all(name == "a.tar.gz.photos" or name.startswith("dataset/small_images/") for name in files)


def test_a_write_that_fails_leaves_nothing(place: Place) -> None:
    archive = place.root / "a.tar.gz.part"
    archive.write_bytes(make_tar_gz({**make_photos(3), "99": random.Random(1).randbytes(200_000)}))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))  # stands in for a full disk
    try:
        with pytest.raises(OSError, match="File too large"):
            unpack(archive, place.photos_dir, "a.tar.gz", place.root / "a.tar.gz.photos", MAX_PHOTO_BYTES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    archive.unlink()
    assert place.files() == UNTOUCHED
