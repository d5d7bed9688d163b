"""The locks say all of what pyproject.toml asks for, nothing of the machine they were made on, and no version with a known hole."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import launch
from tests import lock
from tests.launching import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TORCH = next(text for text in PROJECT["dependencies"] if text.startswith("torch=="))
FLOORS = {
    "gradio": "6.25",
    "torch": "2.10",
    "transformers": "5.3",
    "sentence-transformers": "6.0",
    "langchain-core": "1.3.3",
    "faiss-cpu": "1.15.0",
    "seqeval": "1.2.2",
}


def pins(kind: str) -> dict[str, Requirement]:
    """A lock's requirements by name."""
    text = (ROOT / "assistant" / "locks" / f"{kind}.txt").read_text(encoding="utf-8")
    requirements = [Requirement(line) for line in launch.constraints(text)]
    found = {str(canonicalize_name(requirement.name)): requirement for requirement in requirements}
    assert len(found) == len(requirements), "a package is pinned twice"
    return found


def version(requirement: Requirement) -> Version:
    """The version that a pin names."""
    (specifier,) = requirement.specifier
    assert specifier.operator == "=="
    return Version(specifier.version)


def declared() -> dict[str, list[Requirement]]:
    """What pyproject.toml asks for, by kind of lock."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = {"run": project["dependencies"], "test": project["dependencies"] + project["optional-dependencies"]["dev"]}
    return {kind: [Requirement(text) for text in of_kind] for kind, of_kind in texts.items()}


@pytest.mark.parametrize("kind", ["run", "test"])
def test_every_declared_dependency_is_pinned_at_a_version_that_fits(kind: str) -> None:
    """A stale lock is mended by `python launch.py lock`."""
    locked = pins(kind)
    for requirement in declared()[kind]:
        name = canonicalize_name(requirement.name)
        if name != "torch":
            assert name in locked, f"{name} is not in {kind}.txt: run `python launch.py lock`"
            assert version(locked[name]) in requirement.specifier, f"{name}: run `python launch.py lock`"


def test_torch_stands_in_no_lock_and_is_pinned_by_the_project() -> None:
    assert "torch" not in pins("run") | pins("test")
    assert str(Requirement(TORCH).specifier) == "==2.13.0"


def test_the_test_lock_holds_the_run_lock() -> None:
    assert pins("run").items() <= pins("test").items()


def test_floors_of_known_holes_hold_in_the_lock_and_in_what_is_installed() -> None:
    """SEC-03."""
    locked = {name: version(pin) for name, pin in pins("run").items()}
    locked["torch"] = version(Requirement(TORCH))
    for name, floor in FLOORS.items():
        assert locked[name] >= Version(floor), f"{name} below {floor}: a hole is open there"
        assert Version(metadata.version(name)) >= Version(floor), f"{name} below {floor}: a hole is open there"
    for requirement in declared()["run"]:
        if requirement.name in FLOORS:
            lowest = max(Version(bound.version) for bound in requirement.specifier if bound.operator in (">=", "=="))
            assert lowest >= Version(FLOORS[requirement.name]), f"pyproject.toml lets {requirement.name} {lowest} in"


@pytest.mark.parametrize("kind", ["run", "test"])
def test_every_pin_has_hashes_and_no_address_of_a_machine_is_in_the_lock(kind: str) -> None:
    text = (ROOT / "assistant" / "locks" / f"{kind}.txt").read_text(encoding="utf-8")
    for block in re.split(r"^(?=\w)", text, flags=re.MULTILINE)[1:]:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block
    assert not re.search(
        r"://|^\s*-(?!-hash)|--(?!hash)|/(?!locks)\w+/|nvidia|emscripten'$", text.replace("# -c", ""), re.MULTILINE
    )


@pytest.mark.parametrize("kind", ["run", "test"])
def test_nothing_that_a_pin_needs_is_left_out(kind: str) -> None:
    """The lock is installed without looking at dependencies: they all have to stand in it, torch's included."""
    locked = pins(kind)
    todo = [(requirement, extra) for requirement in declared()[kind] for extra in {"", *requirement.extras}]
    seen: set[tuple[str, str]] = set()
    while todo:
        requirement, extra = todo.pop()
        name = canonicalize_name(requirement.name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        assert name in locked or name == "torch" or re.match("nvidia-|cuda-|triton$", name), f"{name} is left out"
        if name not in locked and name != "torch":
            continue
        for text in metadata.requires(name) or []:
            below = Requirement(text)
            if below.marker is None or below.marker.evaluate({"extra": extra}):
                todo += [(below, further) for further in {"", *below.extras}]
    assert len(seen) > 90


def test_constraints_are_the_lock_without_its_hashes() -> None:
    text = (
        "# head\na-b==1.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n    # via c\n"
        "d==2 ; python_version < '3.13' \\\n    --hash=sha256:cc\ne==3\n"
    )
    assert launch.constraints(text) == ["a-b==1.0", "d==2 ; python_version < '3.13'", "e==3"]


def test_a_written_lock_leaves_out_what_only_a_cuda_build_needs() -> None:
    names = ["numpy==2", "nvidia-cublas==13 ; sys_platform == 'linux'", "triton==3", "cuda-toolkit==13"]
    names += ["httpx2-jsfetch==1 ; sys_platform == 'emscripten'", "truststore==1 ; sys_platform != 'emscripten'"]
    text = "".join(f"{name} \\\n    --hash=sha256:aa\n    # via torch\n" for name in names)
    assert launch.constraints(lock.pruned("# by uv\n" + text)) == [names[0], names[-1]]
