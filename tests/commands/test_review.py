"""The review page: in Chromium as a person uses it, and over HTTP as an attacker would."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.cookies import SimpleCookie
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
import pytest

from flair.curation.exclusion import read_exclusion
from flair.curation.reviews import PairChange, ReviewFile, pair, read_reviews
from flair.dataset.metadata import Record, load_records
from flair.miniature.dataset import make_dataset
from flair.reviewing.app import Review, create_app
from flair.reviewing.groups import Group, Groups
from flair.reviewing.index import PhotoIndex
from tests.support.commands import run, start

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request

HOSTILE = "<img src=x onerror=\"document.title='hacked'\">&'"
MARKS = "✓ ok", "! problem", "✕ blacklist"


class Answer(NamedTuple):
    code: int
    body: str
    headers: Any


class Server:
    """The command in a process of its own, and a client that behaves like its page."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.reviews = folder / "reviews.json"
        reviewer = (f"--reviews={self.reviews}", "--reviewer=Ann")
        self.process = start("flair.review", f"--dataset_dir={folder / 'dataset'}", "--port=0", *reviewer, *flags)
        self.lines: list[str] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/", line):
                self.port = int(found.group(1))
                self.url = found.group(0).rstrip("/")
                return
        assert self.process.stderr is not None
        raise AssertionError(self.process.stderr.read())

    def stop(self, number: int = signal.SIGINT) -> str:
        """Ends the server; what it said after it had started."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=20)
        return out + err

    def get(self, path: str, **headers: str) -> Answer:
        return self._ask(
            urllib.request.Request(self.url + path, headers={k.replace("_", "-"): v for k, v in headers.items()})
        )

    def credentials(self) -> dict[str, str]:
        """Token and cookie of a page."""
        page = self.get("/")
        token = re.search(r'name="review-token" content="([^"]+)"', page.body)
        assert token is not None
        cookie = SimpleCookie(page.headers["Set-Cookie"])
        (name,) = cookie
        return {"X-Review-Token": token.group(1), "Cookie": f"{name}={cookie[name].value}"}

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Answer:
        credentials = self.credentials() if headers is None else headers
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        all_headers = {"Content-Type": "application/json", **credentials}
        return self._ask(urllib.request.Request(self.url + path, data, all_headers, method="POST"))

    def _ask(self, request: urllib.request.Request) -> Answer:
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return Answer(response.status, response.read().decode(errors="replace"), response.headers)
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.read().decode(errors="replace"), error.headers)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """260 photos, one with a hostile label, and what an audit would have found in them."""
    folder = tmp_path_factory.mktemp("review")
    make_dataset(folder / "dataset", num_users=50, num_images=260, seed=4)
    path = folder / "dataset" / "labels_and_metadata.json"
    records = json.loads(path.read_text())
    records[0]["labels"], records[0]["fine_grained_labels"] = [HOSTILE], [HOSTILE]
    path.write_text(json.dumps(records))
    ids = {name: [item["image_id"] for item in records if item["partition"] == name] for name in ("train", "test")}
    groups = [[ids["test"][0], ids["train"][0]], ids["train"][10:13]]
    duplicates = {one: [other for other in group if other != one] for group in groups for one in group}
    neighbors = {
        one: {"l2": [[other, 2.5e6] for other in others], "dssim": [[other, 0.0125] for other in others]}
        for one, others in duplicates.items()
    }
    (folder / "audit").mkdir()
    (folder / "audit" / "near_duplicates.json").write_text(json.dumps(duplicates))
    (folder / "audit" / "neighbors.json").write_text(json.dumps(neighbors))
    return folder


@pytest.fixture
def server(dataset: Path, tmp_path: Path) -> Iterator[Server]:
    """A server with reviews of its own."""
    (tmp_path / "dataset").symlink_to(dataset / "dataset")
    started = Server(tmp_path, f"--duplicates={dataset / 'audit'}")
    yield started
    started.stop()


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """A window at the photos; no request of it may leave the server, and none of its scripts may fail."""
    window = browser.new_page(viewport={"width": 1280, "height": 900})
    problems: list[str] = []

    def check(request: Request) -> None:
        if not request.url.startswith(f"{server.url}/"):
            problems.append(request.url)

    window.on("request", check)
    window.on("pageerror", lambda error: problems.append(str(error)))
    window.goto(f"{server.url}/")
    yield window
    window.close()
    assert not problems


def photo_ids(window: Page) -> list[str]:
    return [str(card.get_attribute("data-photo")) for card in window.locator(".card").all()]


def metadata(dataset: Path) -> list[dict[str, Any]]:
    content = json.loads((dataset / "dataset" / "labels_and_metadata.json").read_text())
    assert isinstance(content, list)
    return content


def test_open_filter_mark_reload_still_marked(page: Page, server: Server, dataset: Path) -> None:
    records = metadata(dataset)
    page.locator("select[name=partition]").select_option("test")
    page.locator("select[name=label]").select_option("plant")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**label=plant*")
    expected = [r["image_id"] for r in records if r["partition"] == "test" and "plant" in r["labels"]]
    assert photo_ids(page) == expected
    first = page.locator(".card").first
    first.get_by_role("button", name="blacklist").click()
    page.get_by_text("Marked blacklist").wait_for()
    page.reload()
    assert page.locator(".card").first.get_attribute("data-mark") == "blacklist"
    assert first.get_by_role("button", name="blacklist").get_attribute("aria-pressed") == "true"
    (mark,) = read_reviews(server.reviews).photos[expected[0]]
    assert (mark.mark, mark.reviewer) == ("blacklist", "Ann") and mark.time.startswith("20")
    page.goto(f"{server.url}/?mark=blacklist")
    assert photo_ids(page) == [expected[0]]
    page.goto(f"{server.url}/?user={records[0]['user_id']}&size=200")
    assert photo_ids(page) == [r["image_id"] for r in records if r["user_id"] == records[0]["user_id"]]


def test_keys_do_what_the_mouse_does(page: Page, server: Server) -> None:
    ids = photo_ids(page)
    for key in ("ArrowRight", "o", "ArrowRight", "p", "ArrowRight", "b", "ArrowDown", "b", "u"):
        page.keyboard.press(key)
        page.locator(".busy").wait_for(state="detached")
    reviews = read_reviews(server.reviews)
    assert [reviews.photo_mark(name) for name in ids[:3]] == ["ok", "problematic", "blacklist"]
    assert [mark.mark for history in list(reviews.photos.values())[3:] for mark in history] == ["blacklist", "none"]
    assert page.evaluate("getComputedStyle(document.activeElement.closest('.card')).outlineStyle") == "solid"
    page.keyboard.press("]")
    page.wait_for_url("**page=2*")
    page.keyboard.press("?")
    assert page.get_by_role("dialog").is_visible()


def test_near_duplicates_side_by_side(page: Page, server: Server, dataset: Path) -> None:
    page.get_by_role("link", name="Near duplicates").click()
    page.wait_for_url("**/groups")
    groups = page.locator(".group")
    assert groups.count() == 2
    assert "across partitions" in groups.nth(0).inner_text() + groups.nth(1).inner_text()
    triple = groups.filter(has_text="3 photos")
    assert "2 to decide" in triple.inner_text()
    assert "RMS 3.6 of 255" in triple.inner_text() and "SSIM 0.975" in triple.inner_text()
    members = [str(card.get_attribute("data-photo")) for card in triple.locator(".card").all()]
    triple.locator(".card").nth(1).get_by_role("button", name="duplicate").click()
    page.get_by_text("A duplicate", exact=True).wait_for()
    triple.locator(".card").nth(2).locator(".open").focus()
    page.keyboard.press("n")
    page.get_by_text("No duplicate", exact=True).wait_for()
    page.reload()
    triple = page.locator(".group").filter(has_text="3 photos")
    assert "0 to decide" in triple.inner_text()
    assert [card.get_attribute("data-decision") for card in triple.locator(".card").all()] == ["", "duplicate", "not"]
    reviews = read_reviews(server.reviews)
    assert reviews.pair_mark(members[0], members[1]) == "duplicate"
    assert {reviews.pair_mark(members[2], other) for other in members[:2]} == {"not"}


def test_two_windows_lose_nothing_and_see_each_other(page: Page, browser: Browser, server: Server) -> None:
    other = browser.new_page()
    other.goto(f"{server.url}/")
    for window, row, name in ((page, 0, "ok"), (other, 1, "blacklist"), (page, 2, "problem"), (other, 3, "ok")):
        window.locator(".card").nth(row).get_by_role("button", name=name).click()
        window.locator(".busy").wait_for(state="detached")
    page.evaluate("window.dispatchEvent(new Event('focus'))")
    page.locator(".card[data-mark=blacklist]").wait_for()
    marks = [card.get_attribute("data-mark") for card in page.locator(".card").all()[:5]]
    assert marks == ["ok", "blacklist", "problematic", "ok", "none"]
    assert len(read_reviews(server.reviews).photos) == 4
    other.close()


def test_hostile_labels_and_names_are_shown_as_text(page: Page, server: Server, dataset: Path) -> None:
    image_id = metadata(dataset)[0]["image_id"]
    page.get_by_label("Reviewer").fill(HOSTILE[:80])
    page.goto(f"{server.url}/photo/{image_id}")
    page.locator(".card").first.get_by_role("button", name="ok").click()
    page.get_by_text("Marked ok").wait_for()
    for path in (
        f"/photo/{image_id}",
        "/?size=200",
        "/groups",
        f"/?user={HOSTILE}&label={HOSTILE}",
        f"/?fine={HOSTILE}",
    ):
        page.goto(server.url + path)
        assert "hacked" not in page.title()
        assert page.locator("img[src=x]").count() == 0
    page.goto(f"{server.url}/photo/{image_id}")
    assert HOSTILE in page.locator(".facts").inner_text()
    assert HOSTILE[:80] in page.locator(".history").inner_text()


@pytest.mark.parametrize("width", [pytest.param(1280, marks=pytest.mark.slow), 390])
def test_the_page_fits_its_window(page: Page, server: Server, width: int, tmp_path: Path) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    for path in ("/", "/groups", f"/photo/{photo_ids(page)[0]}", "/?user=nobody"):
        page.goto(server.url + path)
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(path=tmp_path / "page.png")
        shown = page.evaluate(
            "[...document.images].filter(i => i.getBoundingClientRect().top < innerHeight)"
            ".every(i => i.complete && i.naturalWidth === 256)"
        )
        assert shown


def test_a_page_of_200_photos_shows_within_a_second(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/?size=50")
    times = []
    while len(times) < 5 and min(times, default=9.0) >= 1.0:  # whoever else works on this machine slows some of them
        start = time.monotonic()
        page.goto(f"{server.url}/?size=200")
        times.append(time.monotonic() - start)
    assert page.locator(".card").count() == 200
    assert min(times) < 1.0


def test_a_stopped_server_is_told_and_the_mark_not_shown(page: Page, server: Server) -> None:
    server.stop()
    page.locator(".card").first.get_by_role("button", name="ok").click()
    page.get_by_text("The server does not answer; the mark is not kept").wait_for()
    assert page.locator(".card").first.get_attribute("data-mark") == "none"


def test_unknown_ids_and_paths_are_refused_and_change_nothing(server: Server, dataset: Path) -> None:
    known = metadata(dataset)[0]["image_id"]
    other = metadata(dataset)[1]["image_id"]
    assert server.post("/api/photos", {"image_ids": [known], "mark": "ok", "reviewer": "Ann"}).code == 200
    before = server.reviews.read_bytes()
    for wrong in (
        "123",
        "../labels_and_metadata",
        f"../small_images/{known}",
        f"{known}.jpg",
        "",
        "/etc/passwd",
        5,
        None,
    ):
        body = {"image_ids": [known, wrong], "mark": "blacklist", "reviewer": "Ann"}
        assert server.post("/api/photos", body).code == 400
        body = {"members": [known, wrong], "image_id": known, "mark": "not", "reviewer": "Ann"}
        assert server.post("/api/groups", body).code == 400
    photo = {"image_ids": [known], "mark": "ok", "reviewer": "Ann"}
    group = {"members": [known, other], "image_id": known, "mark": "not", "reviewer": "Ann"}
    for path, body in (
        ("/api/photos", photo | {"mark": "nonsense"}),
        ("/api/photos", photo | {"image_ids": []}),
        ("/api/photos", photo | {"image_ids": {known: 1}}),
        ("/api/photos", photo | {"image_ids": [known] * 1001}),
        ("/api/photos", photo | {"reviewer": ""}),
        ("/api/photos", photo | {"reviewer": "a\u0000b"}),
        ("/api/photos", photo | {"more": 1}),
        ("/api/photos", [photo]),
        ("/api/photos", b"{"),
        ("/api/photos", b"[" * 100_000),
        ("/api/groups", group | {"members": [known, known]}),
        ("/api/groups", group | {"image_id": metadata(dataset)[2]["image_id"]}),
        ("/api/groups", group | {"mark": "ok"}),
    ):
        answer = server.post(path, body)
        assert answer.code == 400 and json.loads(answer.body)["error"]
    assert server.reviews.read_bytes() == before


def test_other_pages_cannot_change_anything(server: Server, dataset: Path) -> None:
    body = {"image_ids": [metadata(dataset)[0]["image_id"]], "mark": "ok", "reviewer": "Ann"}
    for change in (
        {"X-Review-Token": ""},
        {"X-Review-Token": "guess"},
        {"Cookie": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://[bad"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Content-Type": "text/plain"},
        {"Host": "evil.example"},
        {"Host": "127.0.0.1:1"},
    ):
        assert server.post("/api/photos", body, server.credentials() | change).code == 400, change
    assert not server.reviews.exists()
    assert server.post("/api/photos", body, server.credentials() | {"Origin": server.url}).code == 200


def test_other_names_for_this_machine_are_refused_and_headers_protect(server: Server) -> None:
    assert server.get("/", Host="evil.example").code == 400
    assert server.get("/", Host=f"evil.example:{server.port}").code == 400
    page = server.get("/", Host=f"localhost:{server.port}")
    assert page.code == 200
    assert page.headers["Content-Security-Policy"].startswith("default-src 'self';")
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert "SameSite=Strict" in page.headers["Set-Cookie"] and "HttpOnly" in page.headers["Set-Cookie"]
    assert not re.search(r"""(?:src|href|action)=["'](?:https?:)?//""", page.body)


@pytest.mark.parametrize(("port", "host"), [(80, "127.0.0.1"), (80, "localhost"), (8009, "127.0.0.1:8009")])
def test_the_page_answers_at_the_address_that_browsers_send(
    dataset: Path, tmp_path: Path, port: int, host: str
) -> None:
    index = PhotoIndex(load_records(dataset / "dataset"))
    client = create_app(Review(dataset / "dataset", index, ReviewFile(tmp_path / "reviews.json")), port).test_client()
    assert client.get("/", headers={"Host": host}).status_code == 200
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400


def test_a_group_of_thousands_can_be_marked(tmp_path: Path) -> None:
    records = [Record("user", f"{number:05}", ("sky",), ("sky",), "train") for number in range(3000)]
    group = Group(tuple(record.image_id for record in records), True)
    reviews = ReviewFile(tmp_path / "reviews.json")
    client = create_app(Review(tmp_path, PhotoIndex(records), reviews, Groups([group])), 80).test_client()
    page = client.get("/groups").text
    token = re.search(r'review-token" content="([^"]+)"', page)
    assert token is not None and "and 2,976 more" in page
    body = {"members": group.members, "image_id": "00000", "mark": "duplicate", "reviewer": "Ann"}
    answer = client.post("/api/groups", json=body, headers={"X-Review-Token": token.group(1)})
    assert answer.status_code == 200 and set(answer.get_json()["decisions"].values()) == {"duplicate"}
    assert len(reviews.read().pairs) == 2999


@pytest.mark.parametrize("name", ["endpoint", "_scheme", "_anchor", "_external", "_method"])
def test_parameters_that_mean_nothing_change_no_link(server: Server, name: str) -> None:
    page = server.get(f"/?size=50&{name}=x")
    assert page.code == 200
    assert f'href="/?size=50&amp;{name}=x&amp;page=2"' in page.body


def test_photos_are_served_by_known_id_only(server: Server, dataset: Path) -> None:
    known = metadata(dataset)[0]["image_id"]
    photo = server.get(f"/image/{known}.jpg")
    assert (photo.code, photo.headers["Content-Type"]) == (200, "image/jpeg")
    assert photo.headers["X-Content-Type-Options"] == "nosniff"
    for name in (
        "123.jpg",
        "../labels_and_metadata.json",
        "..%2Flabels_and_metadata.jpg",
        f"{known}",
        f"{known}.jpg/x",
    ):
        assert server.get(f"/image/{name}").code == 404
    assert server.get("/photo/123").code == 404
    assert server.get("/groups/99").code == 404


def test_only_regular_files_of_the_photo_folder_are_served(tmp_path: Path) -> None:
    make_dataset(tmp_path, num_users=3, num_images=6, seed=1)
    records = load_records(tmp_path)
    review = Review(tmp_path, PhotoIndex(records), ReviewFile(tmp_path / "reviews.json"))
    client = create_app(review, 80).test_client()
    folder, secret = tmp_path / "small_images", tmp_path / "secret"
    secret.write_text("secret")

    def get(record: Record, page: str = "image") -> Any:
        address = f"/{page}/{record.image_id}" + (".jpg" if page == "image" else "")
        return client.get(address, base_url="http://127.0.0.1:80")

    own = folder / f"{records[0].image_id}.jpg"
    answer = get(records[0])
    assert (answer.status_code, answer.data) == (200, own.read_bytes())
    again = client.get(
        f"/image/{records[0].image_id}.jpg",
        base_url="http://127.0.0.1:80",
        headers={"If-None-Match": answer.headers["ETag"]},
    )
    assert again.status_code == 304
    for record, make in (
        (records[1], lambda path: path.symlink_to(secret)),
        (records[2], lambda path: path.symlink_to(own)),
        (records[3], os.mkfifo),
        (records[4], Path.mkdir),
    ):
        path = folder / f"{record.image_id}.jpg"
        path.unlink()
        make(path)
        answer = get(record)
        assert answer.status_code == 404 and b"secret" not in answer.data
        assert get(record, "photo").status_code == 200
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert get(records[0]).status_code == 404


def test_it_listens_on_loopback_only(server: Server) -> None:
    listening = [c for c in psutil.Process(server.process.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert [(c.laddr.ip, c.laddr.port) for c in listening] == [("127.0.0.1", server.port)]


def test_two_servers_lose_nothing(server: Server, dataset: Path, tmp_path: Path) -> None:
    second = Server(tmp_path)
    ids = [item["image_id"] for item in metadata(dataset)]
    codes: list[int] = []

    def mark(one: Server, names: list[str]) -> None:
        credentials = one.credentials()
        for name in names:
            body = {"image_ids": [name], "mark": "ok", "reviewer": "Ann"}
            codes.append(one.post("/api/photos", body, credentials).code)

    work = [(server, ids[0:20]), (second, ids[20:40]), (server, ids[40:60]), (second, ids[60:80])]
    threads = [threading.Thread(target=mark, args=item) for item in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    second.stop()
    assert set(codes) == {200} and len(codes) == 80
    assert read_reviews(server.reviews).photos_marked("ok") == set(ids[:80])


def test_ctrl_c_ends_it_quietly_and_says_where_the_reviews_are(server: Server, dataset: Path) -> None:
    body = {"image_ids": [metadata(dataset)[0]["image_id"]], "mark": "ok", "reviewer": "Ann"}
    assert server.post("/api/photos", body).code == 200
    text = server.stop()
    assert server.process.returncode == 130
    assert f"Reviews: {server.reviews} (1 photos and 0 pairs marked)" in text
    assert "Next: python -m flair.sample_testset" in text and "Traceback" not in text


def test_reviews_damaged_meanwhile_are_told_and_left_alone(server: Server, dataset: Path) -> None:
    server.reviews.write_text("{broken")
    body = {"image_ids": [metadata(dataset)[0]["image_id"]], "mark": "ok", "reviewer": "Ann"}
    answer = server.post("/api/photos", body, server_credentials_of(server))
    assert answer.code == 500 and "not JSON" in json.loads(answer.body)["error"]
    assert server.reviews.read_text() == "{broken"


def test_marks_that_cannot_be_written_are_told_why(server: Server, dataset: Path) -> None:
    credentials = server.credentials()
    server.reviews.mkdir()
    body = {"image_ids": [metadata(dataset)[0]["image_id"]], "mark": "ok", "reviewer": "Ann"}
    answer = server.post("/api/photos", body, credentials)
    assert answer.code == 500 and "is a directory" in json.loads(answer.body)["error"]
    assert "Traceback" not in server.stop()


def server_credentials_of(server: Server) -> dict[str, str]:
    """As `Server.credentials`, from a page that needs no reviews."""
    page = server.get("/photo/none")
    token = re.search(r'name="review-token" content="([^"]+)"', page.body)
    assert token is not None
    return {"X-Review-Token": token.group(1), "Cookie": str(page.headers["Set-Cookie"]).partition(";")[0]}


def test_mistakes_end_in_one_line(server: Server, dataset: Path) -> None:
    for flag, message in (
        (f"--reviews={dataset / 'dataset' / 'labels_and_metadata.json'}", "is no file of reviews"),
        ("--duplicates=nothing", "no such directory"),
        ("--testset=nothing.json", "no such test set"),
        (f"--port={server.port}", "cannot listen there"),
        ("--reviewer= ", "reviewer"),
    ):
        result = run("flair.review", f"--dataset_dir={dataset / 'dataset'}", "--port=0", flag, code=1)
        assert message in result.stderr and "Traceback" not in result.stderr


def test_what_reviewers_decided_is_exported_for_the_other_commands(dataset: Path, tmp_path: Path) -> None:
    found = read_exclusion(dataset / "audit" / "near_duplicates.json")
    one, other = next(sorted(group) for group in found.components if len(group) == 2)
    ReviewFile(tmp_path / "reviews.json").update(lambda _: [PairChange(pair(one, other), "not")], "Ann", "now")
    command = ("flair.review", f"--dataset_dir={dataset / 'dataset'}", f"--output_file={tmp_path / 'out.json'}")
    run(*command, f"--duplicates={dataset / 'audit'}", f"--reviews={tmp_path / 'reviews.json'}")
    assert read_exclusion(tmp_path / "out.json").components == tuple(c for c in found.components if len(c) > 2)
    run(*command, code=2)


def test_histograms_of_a_test_set_are_drawn_and_their_labels_are_text(
    browser: Browser, dataset: Path, tmp_path: Path
) -> None:
    drawn = {"candidates": [4, 0, 0, 12, 0], "reference": [0, 0, 0, 8, 0], "wanted": [1, 0, 0, 3, 0]}
    histogram = {HOSTILE: drawn, "broken": {"wanted": [1, 2]}, "worse": {"wanted": ["1", True, -1, 0, 0]}, "no": 3}
    photo = metadata(dataset)[0]
    manifest = {"name": "b-0", "partition": photo["partition"], "image_ids": [photo["image_id"]]}
    (tmp_path / "b-0.json").write_text(json.dumps({**manifest, "histogram": histogram}))
    (tmp_path / "plain-0.json").write_text(json.dumps({**manifest, "name": "plain-0"}))
    (tmp_path / "dataset").symlink_to(dataset / "dataset")
    server = Server(tmp_path, f"--testset={tmp_path / 'b-0.json'}")
    window = browser.new_page()
    try:
        window.goto(server.url)
        window.get_by_role("link", name="Histograms").click()
        rows = window.locator(".histograms tbody tr")
        assert rows.count() == 1 and rows.locator("th").inner_text() == HOSTILE
        assert window.title() == "Histograms · FLAIR review"
        heights = [float(one.get_attribute("height") or "nan") for one in rows.locator("rect").all()]
        assert heights == [25, 0, 0, 75, 0, 0, 0, 0, 100, 0, 25, 0, 0, 75, 0]
        box = rows.locator("rect").nth(3).bounding_box()
        assert box is not None and box["height"] == pytest.approx(45, abs=1)  # three quarters of 60 pixels
        assert "12" in rows.inner_text()
    finally:
        window.close()
        server.stop()
    plain = Server(tmp_path, f"--testset={tmp_path / 'plain-0.json'}")
    try:
        assert plain.get("/histograms").code == 404 and "/histograms" not in plain.get("/").body
    finally:
        plain.stop()
