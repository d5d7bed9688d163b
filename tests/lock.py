"""Writes assistant/locks/*.txt from pyproject.toml: `python launch.py lock` is this file.

One lock holds for every platform and Python from 3.11 on (markers tell them apart) and is asked of PyPI alone, so that no
index of the machine it is made on gets into it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "assistant" / "locks"
KINDS = {"run": [], "test": ["--extra=dev", "-c", "assistant/locks/run.txt"]}
OPTIONS = [
    "--universal",
    "--python-version=3.11",
    "--fork-strategy=fewest",
    "--generate-hashes",
    "--no-emit-package=torch",
]
OPTIONS += ["--no-header", "--no-config", "--default-index=https://pypi.org/simple", "--quiet"]
HEAD = """\
# Exact versions for every platform with the SHA-256 of every file, made from pyproject.toml by `python launch.py lock`.
# torch stands in pyproject.toml alone: its builds differ from machine to machine.
"""


def pruned(lock: str) -> str:
    """`lock` without what only a CUDA build of torch needs (it comes with that build), and without other worlds' parts."""
    blocks = re.split(r"^(?=[A-Za-z0-9])", lock, flags=re.MULTILINE)[1:]
    kept = [text for text in blocks if not re.match(r"nvidia-|cuda-|triton=|.* sys_platform == 'emscripten'", text)]
    return HEAD + "".join(kept)


def main(arguments: Sequence[str]) -> int:
    """Write both locks; pins that still fit stay, unless `--upgrade`."""
    uv = [sys.executable, "-m", "uv"]
    if subprocess.run([*uv, "--version"], capture_output=True, check=False).returncode:
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "uv>=0.9"], check=True)
    LOCKS.mkdir(exist_ok=True)
    for kind, further in KINDS.items():
        path, beside = LOCKS / f"{kind}.txt", LOCKS / f"{kind}.new"
        if path.exists():
            shutil.copy(path, beside)
        command = [*uv, "pip", "compile", "pyproject.toml", f"--output-file={beside}", *OPTIONS, *further, *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            beside.unlink(missing_ok=True)
            print(f"{path.name} stays as it was, for uv says: {' '.join(done.stderr.split())}", file=sys.stderr)
            return 1
        beside.write_text(pruned(beside.read_text(encoding="utf-8")), encoding="utf-8")
        beside.replace(path)
        print(f"{path.relative_to(ROOT)}: {path.read_text(encoding='utf-8').count(chr(10) + '    # via')} pins")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
