"""The pins, the layers, and what an installed copy holds."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.commands import ROOT


def _load_lock() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lock", ROOT / "requirements" / "lock.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["lock"] = module
    spec.loader.exec_module(module)
    return module


lock = _load_lock()


def check_pins(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "requirements" / "lock.py"), "--check", "--root", str(root)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def pins_copy(tmp_path: Path) -> Path:
    """A copy of pyproject.toml and of all pinned files."""
    (tmp_path / "requirements").mkdir()
    for path in (ROOT / "pyproject.toml", ROOT / "requirements.txt", *(ROOT / "requirements").glob("*.txt")):
        shutil.copy(path, tmp_path / path.relative_to(ROOT))
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def renew_digest(root: Path) -> None:
    """Makes every pinned file claim to come from the present pyproject.toml, as a careless hand would."""
    digests = lock.read_project(root).digests
    for path in (root / "requirements.txt", *(root / "requirements").glob("*.txt")):
        digest = digests.get(None if path.stem == "requirements" else path.stem)
        lines = path.read_text().splitlines(keepends=True)
        marked = (f"# pyproject.toml sha256:{digest}\n" if "pyproject.toml sha256" in line else line for line in lines)
        path.write_text("".join(marked))


def test_the_pins_say_what_pyproject_says(pins_copy: Path) -> None:
    for root in (ROOT, pins_copy):
        ended = check_pins(root)
        assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"tqdm>=4.66"', '"tqdm>=4.66",\n    "attrs"'),
        ('"ray[default]==2.52.1"', '"ray[default]==2.52.2"'),
        ('"jax==0.4.20"', '"jax==0.4.21"'),
        ('requires-python = ">=3.10,', 'requires-python = ">=3.11,'),
    ],
)
def test_any_change_of_the_dependencies_is_noticed(pins_copy: Path, old: str, new: str) -> None:
    edit(pins_copy / "pyproject.toml", old, new)
    ended = check_pins(pins_copy)
    assert ended.returncode == 1
    assert "requirements.txt was pinned from other dependencies" in ended.stderr
    assert "run `make lock`" in ended.stdout


def test_a_group_is_pinned_apart(pins_copy: Path) -> None:
    edit(pins_copy / "pyproject.toml", '"grain>=0.2.13"', '"grain>=99"')
    lines = check_pins(pins_copy).stderr.splitlines()
    assert len(lines) == 2
    assert lines[0] == "requirements/interop.txt was pinned from other dependencies than pyproject.toml lists now"
    assert lines[1].startswith("requirements/interop.txt: pyproject.toml asks for `grain>=99`, pinned is ")


def test_a_change_of_anything_else_is_not(pins_copy: Path) -> None:
    edit(pins_copy / "pyproject.toml", 'version = "0.1.0"', 'version = "0.2.0"')
    edit(pins_copy / "pyproject.toml", "line-length = 120", "line-length = 100")
    assert check_pins(pins_copy).returncode == 0


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('"tqdm>=4.66"', '"tqdm>=99"', "requirements.txt: pyproject.toml asks for `tqdm>=99`, pinned is "),
        ('"tqdm>=4.66"', '"polars"', "requirements.txt: pyproject.toml asks for `polars`, pinned is nothing"),
        ('"tomli>=2"', "\"tomli>=99 ; python_version < '3.11'\"", "requirements/dev.txt: pyproject.toml asks for"),
        ('ray = ["', 'extra = ["six"]\nray = ["', "requirements/extra.txt is missing"),
        ("ray = [", "sun = [", "requirements/ray.txt belongs to no extra of pyproject.toml"),
    ],
)
def test_direct_requirements_are_held_against_the_pins_themselves(
    pins_copy: Path, old: str, new: str, line: str
) -> None:
    edit(pins_copy / "pyproject.toml", old, new)
    renew_digest(pins_copy)
    ended = check_pins(pins_copy)
    assert ended.returncode == 1
    assert line in ended.stderr


@pytest.mark.parametrize(
    ("file", "added", "line"),
    [
        ("requirements.txt", "--index-url https://example.org/simple\n", "expected an exact pin"),
        ("requirements.txt", "numpy @ file:///data/numpy.whl\n", "expected an exact pin"),
        ("requirements.txt", "humanize>=4\n", "expected an exact pin"),
        ("requirements.txt", "# from https://example.org/simple\n", "names a host"),
        ("requirements.txt", "humanize==4.9.0\n", "humanize has no hash"),
        ("requirements/ray.txt", f"numpy==1.25.2 --hash=sha256:{'0' * 64}\n", "numpy is in requirements.txt already"),
        ("requirements/ray.txt", f"numpy==1.25.1 --hash=sha256:{'0' * 64}\n", "numpy is pinned to 1.25.1 and 1.25.2"),
        ("requirements.txt", f"numpy==1.25.2 --hash=sha256:{'0' * 64}\n", "numpy is pinned twice"),
        ("requirements/interop.txt", f"pyarrow==1.0 --hash=sha256:{'0' * 64}\n", "pyarrow is pinned twice"),
    ],
)
def test_an_edit_of_the_pins_by_hand_is_noticed(pins_copy: Path, file: str, added: str, line: str) -> None:
    with (pins_copy / file).open("a") as pins:
        pins.write(added)
    ended = check_pins(pins_copy)
    assert ended.returncode == 1
    assert line in ended.stderr


names = st.from_regex(r"[a-z][a-z0-9]{0,8}(-[a-z0-9]{1,4})?", fullmatch=True)
pins = st.builds(
    lock.Pin,
    name=names,
    version=st.from_regex(r"[0-9]{1,2}(\.[0-9]{1,3}){0,3}(rc1|\.post1|\+cpu)?", fullmatch=True),
    marker=st.sampled_from(["", "python_full_version < '3.11'", "os_name == 'nt' or sys_platform == 'linux'"]),
    hashes=st.lists(st.binary().map(lambda data: f"sha256:{hashlib.sha256(data).hexdigest()}"), max_size=3).map(tuple),
)


@given(st.lists(pins, max_size=5), st.sampled_from([None, "dev"]))
def test_pinned_files_read_back_as_written(written: list, extra: str | None) -> None:
    project = lock.Project([], {}, {}, {pin.name for pin in written[:1]}, {extra: "0" * 64})
    assert lock.parse_pins(lock.compose(extra, written, project), "text") == written


def test_a_pinned_file_begins_with_what_to_type() -> None:
    project = lock.read_project(ROOT)
    for name in (None, *project.extras, *project.groups):
        files = [path.relative_to(ROOT) for path in dict.fromkeys(lock.pinned_path(ROOT, one) for one in (None, name))]
        typed = " ".join(f"-r {path}" for path in (files[-1:] if name in project.groups else files))
        assert lock.pinned_path(ROOT, name).open().readline() == f"# python3 -m pip install --no-deps {typed}\n"
    assert "\npython3 -m pip install --no-deps -r requirements.txt\n" in (ROOT / "README.md").read_text()
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pinned = next(number for number, line in enumerate(lines) if line.startswith("sqlalchemy=="))  # which pip names
    assert "--no-deps" in lines[pinned - 1]


def test_a_marker_keeps_only_what_tells_the_supported_environments_apart() -> None:
    always = "python_full_version < '3.12' and platform_machine == 'x86_64' and sys_platform == 'linux'"
    assert lock.simplify(always) == ""
    assert lock.simplify(f"{always} and python_full_version >= '3.11'") == "python_full_version >= '3.11'"
    either = "python_full_version < '3.11' or sys_platform == 'win32'"
    assert lock.simplify(either) == either


# The layers, and what is imported from elsewhere.


class Import(NamedTuple):
    """An import statement: the module it names in full, and whether it runs when its file is imported."""

    file: str
    module: str
    at_import: bool

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]


def imports_of(path: Path) -> Iterator[Import]:
    """Every import of one source file, those for the type checker alone left out."""
    deferred = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    waiting: list[tuple[ast.AST, bool]] = [(ast.parse(path.read_text(encoding="utf-8")), True)]
    while waiting:
        node, at_import = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules = [node.module]
        for module in modules:
            yield Import(path.relative_to(ROOT).as_posix(), module, at_import)
        below = at_import and not isinstance(node, deferred)
        waiting += [(child, below) for child in ast.iter_child_nodes(node)]


SOURCES = sorted([*ROOT.glob("*.py"), *(ROOT / "flair").rglob("*.py"), *(ROOT / "benchmark").rglob("*.py")])


@functools.cache
def all_imports() -> list[Import]:
    """The imports of every source file."""
    return [each for path in SOURCES for each in imports_of(path)]


def test_the_dataset_knows_neither_tensorflow_nor_the_benchmark() -> None:
    below = [each for each in all_imports() if each.file.startswith("flair/")]
    assert below
    forbidden = {"benchmark", "keras", "tensorflow", "tensorflow_federated", "tensorflow_privacy"}
    assert [each for each in below if each.package in forbidden] == []


# Files that are of use with an optional package only: they import it at once, and nothing imports them at once.
FOR_AN_EXTRA = dict.fromkeys(("benchmark/flair_tfds.py", "benchmark/data/tfds_builder.py"), "tensorflow_datasets")


def test_what_needs_an_extra_is_imported_when_it_is_used() -> None:
    modules = {file.removesuffix(".py").replace("/", ".") for file in FOR_AN_EXTRA}
    at_once = [each for each in all_imports() if each.module in modules and each.at_import]
    assert {each.file for each in at_once} == {"benchmark/flair_tfds.py"}, "one of them, by another of them"


def test_every_package_imported_is_declared() -> None:
    project = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]
    base = {canonicalize_name(Requirement(each).name) for each in project["dependencies"]}
    optional = {
        canonicalize_name(Requirement(each).name)
        for extra, wanted in project["optional-dependencies"].items()
        if extra != "dev"
        for each in wanted
    }
    distributions = packages_distributions()
    undeclared = set()
    for each in all_imports():
        if each.package in sys.stdlib_module_names or each.package in ("flair", "benchmark"):
            continue
        providers = {canonicalize_name(name) for name in distributions.get(each.package, [each.package])}
        is_optional = not each.at_import or FOR_AN_EXTRA.get(each.file) == each.package
        allowed = {*base, *optional} if is_optional else {*base}
        if not providers & allowed:
            undeclared.add((each.file, each.package))
    assert undeclared == set()


def test_a_wheel_holds_both_packages_and_nothing_else_importable(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    for folder in ("flair", "benchmark"):
        shutil.copytree(ROOT / folder, source / folder, ignore=ignored)
    (source / "benchmark" / "configs").mkdir(exist_ok=True)
    (source / "benchmark" / "configs" / "preset.flags").write_text("--seed=1\n")
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    (source / "README.md").write_text("# The FLAIR toolkit\n")
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, tmp_path], cwd=source, capture_output=True, text=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("LICENSE")]
    modules = {path.relative_to(ROOT).as_posix() for path in SOURCES if path.parent != ROOT}
    assert modules <= held
    assert {name for name in held if name.endswith(".py")} == modules
    assert "benchmark/configs/preset.flags" in held
    assert len(licences) == 1
