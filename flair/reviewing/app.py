"""The review page: browse the photos of a dataset, compare near duplicates, and mark them."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from flask import Flask, Response, abort, jsonify, render_template, request, send_file
from werkzeug.exceptions import HTTPException

from flair.curation.manifest import Testset, now
from flair.curation.reviews import PAIR_MARKS, PHOTO_MARKS, PhotoChange, ReviewFile, check_reviewer
from flair.dataset.catalog import PARTITIONS
from flair.dataset.images import MAX_JPEG_BYTES
from flair.dataset.metadata import Record, photo_path
from flair.errors import FlairError
from flair.reviewing.groups import NO_GROUPS, Group, Groups, anchor, decide, decisions, is_decided
from flair.reviewing.guard import Guard, open_photo
from flair.reviewing.index import MARK_FILTERS, Filters, PhotoIndex
from flair.reviewing.view import (
    MAX_GROUP_SHOWN,
    NEIGHBORS_SHOWN,
    SERIES,
    card,
    distances,
    group_view,
    histograms,
    mark_counts,
    page_of,
    span,
)
from flair.terminal.command import explain_os_error

PAGE_SIZES = (50, 100, 200)
DEFAULT_PAGE_SIZE = 100
GROUPS_PER_PAGE = 10
USERS_PER_PAGE = 120
HISTOGRAMS_PER_PAGE = 100
MAX_PHOTOS_MARKED = 1000
MAX_GROUP_MEMBERS = 100_000
IN_SET, NEAR_DUPLICATES = "test set", "near duplicates"


class Review:
    """What the page shows and changes.

    Attributes:
      dataset_dir, index, groups, testset: the photos, what is known about them, and the set under review (or None).
      reviews: the file of all marks.
      reviewer: the name the page proposes.
    """

    def __init__(
        self,
        dataset_dir: str | Path,
        index: PhotoIndex,
        reviews: ReviewFile,
        groups: Groups = NO_GROUPS,
        testset: Testset | None = None,
        reviewer: str = "",
    ) -> None:
        self.dataset_dir, self.index, self.reviews = Path(dataset_dir).absolute(), index, reviews
        self.groups, self.testset, self.reviewer = groups, testset, reviewer
        self.histograms = histograms(testset)
        if testset is not None:
            index.add_subset(IN_SET, testset.image_ids)
        if groups.groups:
            index.add_subset(NEAR_DUPLICATES, groups.near_duplicates())


_View = Callable[..., str | Response]


def create_app(review: Review, port: int) -> Flask:
    """The web application for requests to 127.0.0.1:`port`."""
    app = Flask(
        "flair.review", template_folder="page", static_folder="page/static", root_path=str(Path(__file__).parent)
    )
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    guard = Guard(port)
    guard.install(app)

    @app.context_processor
    def common() -> dict[str, Any]:
        return {
            "token": guard.token,
            "reviewer": review.reviewer,
            "reviews_path": str(review.reviews.path),
            "testset": review.testset,
            "has_groups": bool(review.groups.groups),
            "has_histograms": bool(review.histograms),
            "link": _link,
        }

    @app.errorhandler(HTTPException)
    @app.errorhandler(FlairError)
    @app.errorhandler(OSError)
    def explain(error: HTTPException | FlairError | OSError) -> tuple[Response | str, int]:
        code, reason = 500, explain_os_error(error) if isinstance(error, OSError) else str(error)
        if isinstance(error, HTTPException):
            code, reason = error.code or 500, str(error.description)
        if request.path.startswith("/api/"):
            return jsonify(error=reason), code
        return render_template("error.html", code=code, reason=reason), code

    shown: dict[str, _View] = {
        "/": _photos,
        "/users": _users,
        "/photo/<image_id>": _photo,
        "/histograms": _histograms,
        "/groups": _groups,
        "/groups/<int:number>": _group,
        "/image/<image_id>.jpg": _image,
        "/api/fine_labels": _fine_labels,
        "/api/marks": _marks,
    }
    changed: dict[str, _View] = {"/api/photos": _mark_photos, "/api/groups": _mark_in_group}
    for method, views in (("GET", shown), ("POST", changed)):
        for address, view in views.items():
            name = view.__name__.removeprefix("_")
            app.add_url_rule(address, name, functools.partial(view, review), methods=[method])
    return app


def _photos(review: Review) -> str:
    marks = review.reviews.read()
    filters = Filters(**{name: request.args.get(name, "")[:200].strip() for name in Filters._fields})
    rows = review.index.select(filters, marks)
    size = _page_size()
    page = page_of(len(rows), size, request.args.get("page", ""))
    return render_template(
        "photos.html",
        filters=filters,
        unknown=_unknown(review.index, filters),
        page=page,
        size=size,
        sizes=PAGE_SIZES,
        cards=[card(review.index, review.groups, marks, int(row)) for row in rows[page.first - 1 : page.last]],
        labels=review.index.labels,
        partitions=review.index.partitions,
        subsets=review.index.subset_sizes(),
        mark_filters=MARK_FILTERS,
        counts=mark_counts(review.index, marks, rows),
    )


def _users(review: Review) -> str:
    partition = request.args.get("partition", "")
    found = review.index.users(partition)
    page = page_of(len(found), USERS_PER_PAGE, request.args.get("page", ""))
    shown = found[page.first - 1 : page.last]
    return render_template(
        "users.html",
        page=page,
        partition=partition,
        partitions=review.index.partitions,
        users=[(review.index.first_of_user(user), review.index.num_of_user(user)) for user in shown],
    )


def _photo(review: Review, image_id: str) -> str:
    record = _known(review.index, image_id)
    marks = review.reviews.read()
    neighbors = [
        {
            "record": review.index.record(other),
            "distances": distances(values),
            "decision": marks.pair_mark(image_id, other),
        }
        for other, values in list(review.groups.neighbors(image_id).items())[:NEIGHBORS_SHOWN]
    ]
    group = review.groups.group_of(image_id)
    return render_template(
        "photo.html",
        record=record,
        mark=marks.photo_mark(image_id),
        history=marks.photos.get(image_id, ()),
        num_of_user=review.index.num_of_user(record.user_id),
        num_bytes=_size(photo_path(review.dataset_dir, image_id)),
        in_set=review.testset is not None and image_id in review.testset.image_ids,
        refusal=None if review.testset is None else review.testset.refusals.get(image_id),
        neighbors=neighbors,
        group=None if group is None else review.groups.groups.index(group),
        photo_marks=PHOTO_MARKS,
    )


def _histograms(review: Review) -> str:
    if not review.histograms:
        abort(404, "the test set has no histograms; --testset names one that the rule matched drew")
    page = page_of(len(review.histograms), HISTOGRAMS_PER_PAGE, request.args.get("page", ""))
    return render_template(
        "histograms.html", page=page, series=SERIES, shown=review.histograms[page.first - 1 : page.last]
    )


def _groups(review: Review) -> str:
    marks = review.reviews.read()
    kind = request.args.get("kind", "called")
    state = request.args.get("state", "")
    wanted_span = request.args.get("span", "")
    chosen = [
        (number, group)
        for number, group in enumerate(review.groups.groups)
        if group.called == (kind != "similar")
        and (not wanted_span or span(review.index, group) == wanted_span)
        and (not state or is_decided(group, marks) == (state == "decided"))
    ]
    page = page_of(len(chosen), GROUPS_PER_PAGE, request.args.get("page", ""))
    return render_template(
        "groups.html",
        page=page,
        kind=kind,
        state=state,
        span=wanted_span,
        groups=[
            {"number": number, **group_view(review.index, review.groups, marks, group, MAX_GROUP_SHOWN)}
            for number, group in chosen[page.first - 1 : page.last]
        ],
        num_called=sum(group.called for group in review.groups.groups),
        num_similar=sum(not group.called for group in review.groups.groups),
    )


def _group(review: Review, number: int) -> str:
    if number >= len(review.groups.groups):
        abort(404, "there is no such group")
    group = review.groups.groups[number]
    view = {"number": number, **group_view(review.index, review.groups, review.reviews.read(), group, limit=None)}
    return render_template("groups.html", groups=[view], page=page_of(1, 1, ""), single=True)


def _image(review: Review, image_id: str) -> Response:
    path = photo_path(review.dataset_dir, _known(review.index, image_id).image_id)
    file = open_photo(path)
    if file is None:
        abort(404, f"{path} is missing, or no regular file of this folder; links are not followed")
    with file:
        status = os.fstat(file.fileno())
        data = file.read(MAX_JPEG_BYTES)
    etag = f"{status.st_mtime_ns:x}-{status.st_size:x}"
    photo = io.BytesIO(data)
    response = send_file(photo, mimetype="image/jpeg", etag=etag, last_modified=status.st_mtime, max_age=600)
    response.headers["Cache-Control"] = "private, max-age=600"
    return response


def _fine_labels(review: Review) -> Response:
    return jsonify(sorted(review.index.fine_labels))


def _marks(review: Review) -> Response:
    ids = _ids(review.index, request.args.get("ids", "").split(","))
    marks = review.reviews.read()
    return jsonify({image_id: marks.photo_mark(image_id) for image_id in ids})


def _mark_photos(review: Review) -> Response:
    body = _body({"image_ids": list, "mark": str, "reviewer": str})
    ids = _ids(review.index, body["image_ids"])
    _one_of(body["mark"], PHOTO_MARKS)
    changes = [PhotoChange(image_id, body["mark"]) for image_id in ids]
    marks = review.reviews.update(lambda _: changes, body["reviewer"], now())
    return jsonify(marks={image_id: marks.photo_mark(image_id) for image_id in ids})


def _mark_in_group(review: Review) -> Response:
    body = _body({"members": list, "image_id": str, "mark": str, "reviewer": str})
    members = _ids(review.index, body["members"], MAX_GROUP_MEMBERS)
    _one_of(body["mark"], PAIR_MARKS)
    if len(set(members)) < 2 or body["image_id"] not in members:
        abort(400, "expected two photos or more, the marked one among them")
    group = Group(tuple(sorted(set(members))), True)
    marks = review.reviews.update(
        lambda before: decide(group, body["image_id"], body["mark"], before), body["reviewer"], now()
    )
    return jsonify(anchor=anchor(group, marks), decisions=decisions(group, marks))


def _known(index: PhotoIndex, image_id: str) -> Record:
    record = index.record(image_id)
    if record is None:
        abort(404, "there is no such photo in the dataset")
    return record


def _ids(index: PhotoIndex, values: Sequence[Any], most: int = MAX_PHOTOS_MARKED) -> list[str]:
    if not 0 < len(values) <= most:
        abort(400, f"expected 1 to {most} photos, found {len(values)}")
    for value in values:
        if not isinstance(value, str) or value not in index:
            abort(400, f"not a photo of this dataset: {value!r:.80}")
    return list(values)


def _one_of(value: str, known: Sequence[str]) -> None:
    if value not in known:
        abort(400, f"expected one of {', '.join(known)}, found {value!r:.80}")


def _body(fields: Mapping[str, type]) -> dict[str, Any]:
    try:
        body = request.get_json(silent=True)
    except RecursionError:
        body = None
    if not isinstance(body, dict) or body.keys() != fields.keys():
        abort(400, f"expected JSON with the fields {', '.join(fields)}")
    for name, kind in fields.items():
        if not isinstance(body[name], kind):
            abort(400, f"field {name} has the wrong type")
    try:
        check_reviewer(body["reviewer"])
    except FlairError as error:
        abort(400, str(error))
    return body


def _page_size() -> int:
    sizes = {str(size): size for size in PAGE_SIZES}
    return sizes.get(request.args.get("size", ""), DEFAULT_PAGE_SIZE)


def _link(**changes: object) -> str:
    """This page's address with other parameters; those that become empty are left out."""
    arguments: dict[str, Any] = {**request.args.to_dict(), **{name: str(value) for name, value in changes.items()}}
    # Not url_for, for which some parameters that an address may have mean something else.
    return f"{request.path}?{urlencode({name: value for name, value in arguments.items() if value})}"


def _unknown(index: PhotoIndex, filters: Filters) -> str | None:
    if filters.user and not index.num_of_user(filters.user):
        return f"there is no user {filters.user}"
    if filters.label and filters.label not in index.labels:
        return f"there is no label {filters.label}"
    if filters.fine and filters.fine not in index.fine_labels:
        return f"there is no fine-grained label {filters.fine}"
    if filters.partition and filters.partition not in PARTITIONS:
        return f"there is no partition {filters.partition}"
    return None


def _size(path: Path) -> int | None:
    file = open_photo(path)
    if file is None:
        return None
    with file:
        return os.fstat(file.fileno()).st_size
