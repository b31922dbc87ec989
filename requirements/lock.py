"""Pins what pyproject.toml asks for, or checks that the pins still say what it says.

The toolkit and all its extras are resolved together, so that any of them fit beside each other. `requirements.txt` then
holds what the toolkit itself needs, `requirements/<extra>.txt` only what that extra adds to it. Each pin is exact and
carries the hashes of its files, so that `pip install --no-deps` installs the same bytes from whichever index it is set
up to use; the files name no index. Only wheels are taken, save for the few packages in `SOURCE_ONLY`, so that nobody
needs a compiler. A dependency group is an environment of its own, which fits beside nothing: `requirements/<group>.txt`
is all that it holds.

Without --no-deps pip resolves the pins once more, and refuses them: google-vizier 0.1.11, which TensorFlow Federated
0.87 asks for, wants sqlalchemy<=1.4.20, and TensorFlow Federated itself jaxlib==0.4.14, which is gone. What was tried,
with pip 23.2 and 26.3, so that `pip install -r requirements.txt` would do:

    --no-deps in the file, on a line of its own or behind a pin    "no such option: --no-deps"
    constraints, or `pip install .` with pyproject.toml alone      they can only narrow what packages ask for
    --use-deprecated=legacy-resolver                               works; has to be typed, too, and will be removed
    PIP_NO_DEPS=1, or no-deps in the environment's pip.conf        works; and then holds for every other package
    a pylock.toml, which pip 26 reads without resolving            names the place of every file; older pips fail
    wheels of our own with other metadata                          72 MB each, or packages that are not what they say
    uv pip install -r requirements.txt, in this folder             works: uv reads the overrides in pyproject.toml

So the files begin with what to type, and the pins on which pip gives up are marked.

    python requirements/lock.py              pins; keeps each present pin that still fits
    python requirements/lock.py --upgrade    pins the newest of everything
    python requirements/lock.py --check      lists what has drifted; needs no network
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tomli
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
BASE = "requirements.txt"
SOURCE_ONLY = ("jsonpath-rw", "promise")
"""Packages that were never published as a wheel and are plain Python."""

ENVIRONMENTS = tuple(
    {
        "implementation_name": "cpython",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "os_name": "posix",
        "sys_platform": "linux",
    }
    for python in ("3.10", "3.11")
)
"""Every environment the pins are made for."""

_PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;]+)(?:\s*;\s*(?P<marker>.+))?")
_HASH = re.compile(r"--hash=(sha256:[0-9a-f]{64})")


class Pin(NamedTuple):
    """One line of a pinned file: `marker` is empty where the pin holds in every environment."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]

    def __str__(self) -> str:
        requirement = f"{self.name}=={self.version}" + (f" ; {self.marker}" if self.marker else "")
        return " \\\n    ".join((requirement, *(f"--hash={digest}" for digest in self.hashes)))


class Project(NamedTuple):
    """The part of pyproject.toml that decides the pins."""

    base: list[str]
    extras: dict[str, list[str]]
    groups: dict[str, list[str]]
    overridden: Collection[str]
    digests: dict[str | None, str]  # of everything that the pins of an extra or a group depend on; None: the toolkit


def read_project(root: Path) -> Project:
    """The dependencies `pyproject.toml` asks for, and digests of everything in it that a resolution depends on."""
    document: dict[str, Any] = tomli.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    project, uv = document["project"], document.get("tool", {}).get("uv", {})
    base, extras = project.get("dependencies", []), project.get("optional-dependencies", {})
    overridden = {canonicalize_name(Requirement(each).name) for each in uv.get("override-dependencies", [])}
    groups, python = document.get("dependency-groups", {}), project.get("requires-python")
    digests: dict[str | None, str] = dict.fromkeys((None, *extras), _digest(python, base, extras, uv))
    digests |= {group: _digest(python, wanted, uv) for group, wanted in groups.items()}
    return Project(base, extras, groups, overridden, digests)


def _digest(*decisive: Any) -> str:
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def parse_pins(text: str, where: str) -> list[Pin]:
    """The pins in a requirements file; ValueError for a line that is neither a pin, a hash nor a comment.

    >>> parse_pins("six==1.17.0 ; python_version < '3.11'", "requirements.txt")
    [Pin(name='six', version='1.17.0', marker="python_version < '3.11'", hashes=())]
    """
    pins = []
    for line in text.replace("\\\n", " ").splitlines():
        hashes = tuple(_HASH.findall(line))
        requirement = _HASH.sub("", line).strip()
        if not requirement or requirement.startswith("#"):
            continue
        match = _PIN.fullmatch(requirement)
        if match is None:
            raise ValueError(f"{where}: expected an exact pin such as `six==1.17.0`, found `{requirement}`")
        pins.append(Pin(canonicalize_name(match["name"]), match["version"], match["marker"] or "", hashes))
    return pins


def simplify(marker: str) -> str:
    """`marker` without the terms that hold in every supported environment.

    >>> simplify("python_full_version < '3.12' and sys_platform == 'linux'")
    ''
    >>> simplify("python_full_version < '3.11' and platform_machine == 'x86_64'")
    "python_full_version < '3.11'"
    """
    if " or " in marker:
        return "" if _always(marker) else marker
    return " and ".join(term for term in marker.split(" and ") if term and not _always(term))


def _always(marker: str) -> bool:
    return all(Marker(marker).evaluate(environment) for environment in ENVIRONMENTS)


def pinned_path(root: Path, extra: str | None) -> Path:
    """The file that holds the pins of `extra`; of the toolkit itself where `extra` is None."""
    return root / BASE if extra is None else root / "requirements" / f"{extra}.txt"


def compose(extra: str | None, pins: Iterable[Pin], project: Project) -> str:
    """The text of one pinned file, of an extra or of a dependency group."""
    if extra in project.groups:
        subject, command = f"All of the environment `{extra}`", f"-r requirements/{extra}.txt"
    elif extra is None:
        subject, command = "What the toolkit itself needs", f"-r {BASE}"
    else:
        subject = f"What the extra `{extra}` adds to {BASE}"
        command = f"-r {BASE} -r requirements/{extra}.txt"
    overridden = () if extra in project.groups else project.overridden
    reason = (
        "Without --no-deps pip ends with ResolutionImpossible: TensorFlow Federated asks for\n"
        "# packages that are gone, and pip takes --no-deps on the command line only. "
    )
    header = (
        f"# python3 -m pip install --no-deps {command}\n"
        f"# is what to type. {reason if overridden else ''}These pins are complete.\n"
        f"# {subject}, for CPython 3.10 and 3.11 on Linux x86-64.\n"
        "# Pinned by `make lock` from pyproject.toml: change that file, never this one.\n"
        f"# pyproject.toml sha256:{project.digests[extra]}\n"
    )
    mark = "# Overridden in pyproject.toml, hence --no-deps: see the first line.\n"
    return header + "".join(f"{mark if pin.name in overridden else ''}{pin}\n" for pin in pins)


def lock(root: Path, *, upgrade: bool) -> dict[Path, str]:
    """Resolves everything with uv, over the network; returns the text of each pinned file."""
    project = read_project(root)
    with tempfile.TemporaryDirectory() as folder:
        everything = Path(folder, "everything.txt")
        if not upgrade:
            present = [pinned_path(root, extra) for extra in (None, *project.extras)]
            everything.write_text("".join(path.read_text() for path in present if path.exists()), encoding="utf-8")
        _compile(root, everything, "pyproject.toml", "--all-extras", "--generate-hashes")
        pins = {pin.name: pin for pin in parse_pins(everything.read_text(encoding="utf-8"), "uv's answer")}
        part = Path(folder, "part.txt")
        names: dict[str | None, set[str]] = {}
        for extra in (None, *project.extras):
            part.unlink(missing_ok=True)
            of_extra = () if extra is None else ("--extra", extra)
            _compile(root, part, "pyproject.toml", "--constraints", str(everything), *of_extra)
            names[extra] = {pin.name for pin in parse_pins(part.read_text(encoding="utf-8"), "uv's answer")}
        texts = {pinned_path(root, group): _lock_group(root, project, group, upgrade) for group in project.groups}
    return texts | {
        pinned_path(root, extra): compose(
            extra,
            [
                pin._replace(marker=simplify(pin.marker))
                for name, pin in sorted(pins.items())
                if name in wanted and (extra is None or name not in names[None])
            ],
            project,
        )
        for extra, wanted in names.items()
    }


def _lock_group(root: Path, project: Project, group: str, upgrade: bool) -> str:
    with tempfile.TemporaryDirectory() as folder:
        output, present = Path(folder, f"{group}.txt"), pinned_path(root, group)
        if present.exists() and not upgrade:
            output.write_text(present.read_text(encoding="utf-8"), encoding="utf-8")
        _compile(root, output, "--group", f"pyproject.toml:{group}", "--generate-hashes")
        pins = parse_pins(output.read_text(encoding="utf-8"), "uv's answer")
    simple = [pin._replace(marker=simplify(pin.marker)) for pin in sorted(pins)]
    return compose(group, simple, project)


def _compile(root: Path, output: Path, *arguments: str) -> None:
    """Runs `uv pip compile` for every supported environment at once."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--output-file", str(output)]
    command += ["--universal", "--fork-strategy", "fewest", "--python-version", "3.10", "--no-header", "--no-annotate"]
    command += ["--only-binary", ":all:", *(f"--no-binary={name}" for name in SOURCE_ONLY), *arguments]
    patience = {"UV_HTTP_TIMEOUT": "300", "UV_HTTP_RETRIES": "10", "UV_PYTHON_DOWNLOADS": "never"}
    subprocess.run(command, cwd=root, check=True, stdin=subprocess.DEVNULL, env=patience | os.environ)


def problems(root: Path) -> list[str]:
    """What is wrong with the pinned files, a line each; empty when they say what pyproject.toml says."""
    project = read_project(root)
    found: list[str] = []
    files: dict[str | None, list[Pin]] = {}
    for extra in (None, *project.extras, *project.groups):
        path = pinned_path(root, extra)
        where = path.relative_to(root).as_posix()
        if not path.exists():
            found.append(f"{where} is missing")
            continue
        text = path.read_text(encoding="utf-8")
        try:
            files[extra] = parse_pins(text, where)
        except ValueError as error:
            found.append(str(error))
            continue
        if f"# pyproject.toml sha256:{project.digests[extra]}\n" not in text:
            found.append(f"{where} was pinned from other dependencies than pyproject.toml lists now")
        if "://" in text:
            found.append(f"{where} names a host: {re.findall('.*://.*', text)[0].strip()}")
        found += [f"{where}: {pin.name} has no hash" for pin in files[extra] if not pin.hashes]
    stray = {path.stem for path in (root / "requirements").glob("*.txt")} - {*project.extras, *project.groups}
    found += [f"requirements/{name}.txt belongs to no extra of pyproject.toml" for name in sorted(stray)]
    for group, wanted in project.groups.items():
        pins = files.pop(group, [])
        found += [f"requirements/{group}.txt: {line}" for line in _unmet(wanted, pins)] + _clashes([pins])
    base = files.get(None, [])
    for extra, pins in files.items():
        where = pinned_path(root, extra).relative_to(root).as_posix()
        wanted = project.base if extra is None else project.extras[extra]
        found += [f"{where}: {line}" for line in _unmet(wanted, [*base, *pins] if extra else base)]
        if extra is not None:
            found += [f"{where}: {name} is in {BASE} already" for name in sorted(_names(pins) & _names(base))]
    return found + _clashes(pins for extra, pins in files.items())


def _unmet(wanted: Sequence[str], pins: Sequence[Pin]) -> list[str]:
    """The direct requirements that no pin meets, in some environment that the requirement is for."""
    found = []
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        for environment in ENVIRONMENTS:
            if requirement.marker is not None and not requirement.marker.evaluate(environment):
                continue
            held = [p for p in pins if p.name == name and (not p.marker or Marker(p.marker).evaluate(environment))]
            if not any(requirement.specifier.contains(pin.version, prereleases=True) for pin in held):
                has = " and ".join(pin.version for pin in held) or "nothing"
                found.append(f"pyproject.toml asks for `{requirement}`, pinned is {has}")
                break
    return found


def _clashes(files: Iterable[Sequence[Pin]]) -> list[str]:
    """The packages that two files pin differently, or one file twice."""
    versions: dict[str, set[str]] = {}
    found = []
    for pins in files:
        for pin in pins:
            versions.setdefault(pin.name, set()).add(pin.version)
        names = [pin.name for pin in pins]
        found += [f"{name} is pinned twice in one file" for name in sorted(set(names)) if names.count(name) > 1]
    found += [f"{name} is pinned to {' and '.join(sorted(each))}" for name, each in versions.items() if len(each) > 1]
    return found


def _names(pins: Iterable[Pin]) -> set[str]:
    return {pin.name for pin in pins}


def main(argv: Sequence[str]) -> int:
    """Writes the pinned files, or with `--check` prints what has drifted and returns 1."""
    parser = argparse.ArgumentParser(description="Pins what pyproject.toml asks for.", allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="only list what has drifted; needs no network")
    parser.add_argument("--upgrade", action="store_true", help="take the newest of everything, not the present pins")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of pyproject.toml (default: this project)")
    flags = parser.parse_args(argv)
    root = flags.root.resolve()
    if flags.check:
        found = problems(root)
        for line in found:
            print(line, file=sys.stderr)
        print("The pins have drifted: run `make lock`." if found else "The pins agree with pyproject.toml.")
        return 1 if found else 0
    for path, text in lock(root, upgrade=flags.upgrade).items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"{path.relative_to(root)}: {len(parse_pins(text, str(path)))} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
