"""No line of the program can turn data into code; there is no list of exceptions."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for top in ("assistant", "plugins") for path in (ROOT / top).rglob("*.py"))
SOURCES += [path for path in [ROOT / "launch.py"] if path.exists()]

MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}
CALLS = {"eval", "exec", "compile", "torch.load", "yaml.load", "yaml.unsafe_load", "numpy.load", "np.load"}
TRUE = {"trust_remote_code", "allow_pickle", "allow_dangerous_deserialization"}


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a name or an attribute, "" of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""


def unsafe(source: str) -> list[str]:
    """What in `source` could run code that it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in MODULES:
                found.append(str(node.module))
            found += [f"{node.module}.{name.name}" for name in node.names if f"{node.module}.{name.name}" in CALLS]
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            if name in CALLS:
                found.append(name)
            found += [
                str(keyword.arg)
                for keyword in node.keywords
                if keyword.arg in TRUE
                and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
            ]
            if name.endswith("import_module") and node.args and getattr(node.args[0], "value", None) in MODULES:
                found.append(name)
        elif isinstance(node, ast.Dict):
            found += [
                str(key.value)
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant) and key.value in TRUE and getattr(value, "value", None) is True
            ]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_source_can_run_what_it_reads(path: Path) -> None:
    """SEC-01"""
    assert unsafe(path.read_text(encoding="utf-8")) == []


def test_the_sources_are_found() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in SOURCES}

    assert {"assistant/models/store.py", "assistant/storage.py"} <= names


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    import joblib.numpy_pickle as n",
        "from dill import loads",
        "import importlib\nimportlib.import_module('pickle')",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "import yaml\nyaml.load(text)",
        "eval(text)",
        "exec(text)",
        "numpy.load(path)",
        "numpy.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=setting)",
        "AutoModel.from_pretrained(x, **{'trust_remote_code': True})",
        "FAISS.load_local(x, allow_dangerous_deserialization=True)",
    ],
)
def test_each_way_is_recognised(source: str) -> None:
    assert unsafe(source)


@pytest.mark.parametrize(
    "source", ["model.eval()", "connection.exec_driver_sql('')", "json.loads(text)", "f(trust_remote_code=False)"]
)
def test_what_is_harmless_is_let_pass(source: str) -> None:
    assert unsafe(source) == []
