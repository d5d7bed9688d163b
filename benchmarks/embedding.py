"""PERF-02: our embedder beside plain sentence-transformers, on the same weights, one thread each, in the same run.

    python -m benchmarks.embedding --home FOLDER [--quick]

Each side is a process of its own; they take turns, round by round, so that a busy machine slows both. Throughput is per
second of CPU time, which is per core; the ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import record

MODEL = "all-minilm-l6-v2"
_VOCABULARY = """
the a my your our this that it is was has been will can could should not never always please thanks order parcel
refund return invoice payment voucher account password address delivery courier warehouse warranty repair exchange
size colour jacket shoes lamp kettle battery cable box label receipt email phone number date week month today
yesterday tomorrow morning evening broken missing late wrong damaged lost small large new old blue red green how
long when where why which who what send back pay cancel change update track collect pick wait call write again
because although before after without within between about under over
"""
WORDS = tuple(_VOCABULARY.split())
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}


def texts(kind: str, count: int) -> list[str]:
    """`count` texts: `short` of 12 words, `mixed` of 4 to 60, `query` of 5 to 12; always the same ones."""
    low, high = {"short": (12, 12), "mixed": (4, 60), "query": (5, 12)}[kind]
    dice = random.Random(kind)
    return [" ".join(dice.choices(WORDS, k=dice.randint(low, high))) for _ in range(count)]


def ours(home: Path, threads: int | None) -> Callable[[Sequence[str]], Any]:
    """The served path: onnxruntime and tokenizers."""
    from assistant.models.embedder import OnnxEmbedder

    folder, manifest = in_place(home)
    assert manifest.embedder is not None
    return OnnxEmbedder(folder, manifest.embedder, threads=threads).embed_documents


def theirs(home: Path) -> Callable[[Sequence[str]], Any]:
    """What one would write by hand."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    model = SentenceTransformer(str(in_place(home)[0]), device="cpu", local_files_only=True)
    return lambda texts: model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)


def in_place(home: Path) -> tuple[Path, Any]:
    """The folder of the model's current version, verified, and its manifest."""
    from assistant.models import manifest
    from assistant.models.store import Store
    from assistant.storage import Database

    database = Database.at(home)
    installed = next((m for m in Store(home, database).list() if m.name == MODEL and m.current), None)
    database.close()
    if installed is None:
        sys.exit(f"{MODEL} is not in place: run `assistant models pull {MODEL}`, or name its state folder with --home.")
    folder = home / "models" / MODEL / installed.version
    return folder, manifest.verify(folder, manifest.digest(folder))


def serve(side: str, home: Path) -> None:
    """Be one side: a JSON line in (kind, count), a JSON line out (CPU seconds, or per query CPU and wall seconds)."""
    embed = theirs(home) if side == "theirs" else ours(home, None if side == "all cores" else 1)
    embed(texts("mixed", 16))
    print(json.dumps(embed(texts("mixed", 16)).tolist()), flush=True)
    for line in sys.stdin:
        kind, count = json.loads(line)
        batch = texts(kind, count)
        found: Any
        if kind == "query":
            found = []
            for text in batch:
                cpu, wall = time.process_time(), time.perf_counter()
                embed([text])
                found.append((time.process_time() - cpu, time.perf_counter() - wall))
        else:
            cpu = time.process_time()
            embed(batch)
            found = time.process_time() - cpu
        print(json.dumps(found), flush=True)


class Side:
    """A process that embeds when it is told to."""

    def __init__(self, side: str, home: Path) -> None:
        environment = {**os.environ, **(ONE_THREAD if side != "all cores" else {})}
        arguments = [sys.executable, __file__, "--side", side, "--home", str(home)]
        self._process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.sample = self._answer()

    def run(self, kind: str, count: int) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([kind, count]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit("One side ended early; run it with --side to see why.")
        return json.loads(line)


def measure(home: Path, *, quick: bool) -> tuple[list[list[str]], str]:
    """The rows of one run, and a sentence on how it was made."""
    rounds, count, queries = (2, 64, 20) if quick else (7, 256, 60)
    sides = {name: Side(name, home) for name in ("ours", "theirs", "all cores")}
    difference = max(
        abs(a - b)
        for mine, other in zip(sides["ours"].sample, sides["theirs"].sample, strict=True)
        for a, b in zip(mine, other, strict=True)
    )
    speed: dict[tuple[str, str], list[float]] = {}
    cpu: dict[str, list[float]] = {}
    wall: dict[str, list[float]] = {}
    for number in range(rounds):
        order = ["ours", "theirs"][:: 1 if number % 2 else -1]
        for kind in ("short", "mixed"):
            for name in order:
                speed.setdefault((name, kind), []).append(count / sides[name].run(kind, count))
        for name in [*order, "all cores"]:
            found = sides[name].run("query", queries)
            cpu.setdefault(name, []).append(statistics.median(pair[0] for pair in found))
            wall.setdefault(name, []).append(statistics.median(pair[1] for pair in found))
    for side in sides.values():
        side.close()

    rows = []
    for kind, target, words in (("short", 1.15, "12 words"), ("mixed", 1.0, "4-60 words")):
        mine, other = speed["ours", kind], speed["theirs", kind]
        ratio = statistics.median(a / b for a, b in zip(mine, other, strict=True))
        what = f"{kind} ({words}), sentences a second and core"
        numbers = [f"{statistics.median(side):.0f}" for side in (mine, other)]
        rows.append([what, *numbers, f"{ratio:.2f}x", f">= {target:.2f}x", _met(ratio >= target)])
    ratio = statistics.median(b / a for a, b in zip(cpu["ours"], cpu["theirs"], strict=True))
    question = "one question, median"
    rows += [
        [f"{question} CPU ms", _ms(cpu["ours"]), _ms(cpu["theirs"]), f"{ratio:.2f}x", ">= 2.00x", _met(ratio >= 2)],
        [
            f"{question} ms",
            _ms(wall["ours"]),
            _ms(wall["theirs"]),
            "",
            "<= 12 ms",
            _met(statistics.median(wall["ours"]) <= 0.012),
        ],
        [f"{question} ms, all cores", _ms(wall["all cores"]), "", "", "", ""],
    ]
    note = (
        f"{rounds} rounds in turns of {count} texts and {queries} questions, one thread each. The two sides' vectors differ by at "
        f"most {difference:.1e}."
    )
    return rows, note


def _met(good: bool) -> str:
    return "yes" if good else "NO"


def _ms(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds) * 1000:.1f}"


def main() -> int:
    """Measure and record; exit code 1 where a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True, help="a state folder with the model in place")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--side", choices=["ours", "theirs", "all cores"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        serve(options.side, options.home)
        return 0
    in_place(options.home)
    rows, note = measure(options.home.absolute(), quick=options.quick)
    columns = ["what", "ours", "sentence-transformers", "ratio", "target", "met"]
    record("embedding beside sentence-transformers (PERF-02)", columns, rows, note=note)
    return 0 if all(row[-1] != "NO" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
