"""Starts the assistant from a fresh checkout, with Python's standard library alone.

    python launch.py [--host H] [--port P] [--home FOLDER] [--no-browser]    make the environment, then serve
    python launch.py test [--quick | --campaign | --gpu] [pytest's arguments]  every check there is
    python launch.py doctor [--home FOLDER]                                  what is in place, and what to do
    python launch.py lock [--upgrade]                                        pyproject.toml -> assistant/locks/*.txt

The environment is `.venv` beside this file. Its stamp names what is installed and is written last; meanwhile it says
"half-made", and whoever reads that starts over. Exit codes: 0 well, 1 a problem (one sentence), 2 wrong arguments.
"""

import sys

# Ahead of all else and in syntax that Python 3.6 reads: an older Python must get this far.
if tuple(sys.version_info) < (3, 11):
    sys.exit(
        f"The assistant needs Python 3.11 or newer; this is {sys.version.split()[0]} ({sys.executable}). "
        "Install a newer one from your system's packages or python.org, and start with it: python3.11 launch.py"
    )

import argparse
import contextlib
import errno
import hashlib
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

HALF_MADE = "half-made"
PORT = 7860
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
REASONS = {
    r"No space left|File too large|Disk quota": "The disk is full: make room for 3 GB, in the folder for temporary files "
    "too, then start again.",
    r"DO NOT MATCH THE HASHES[\s\S]*?^\s+(\S+==\S+)": "The download of {0} is not the file that the lock names: start "
    "again; if it stays so, a proxy or mirror on the way alters files.",
    r"CERTIFICATE_VERIFY_FAILED": "The package index's certificate is not trusted here: name your network's in PIP_CERT.",
    r"Retrying \(Retry|ConnectionError|ConnectTimeout|ProxyError": "The package index cannot be reached: connect to the "
    "network, or name your mirror or proxy in PIP_INDEX_URL or PIP_PROXY, then start again.",
    r"No matching distribution found for (\S+)": "The package index has no {0} for this Python and machine, or cannot be "
    "reached: use Python 3.11 and see to the network.",
}


class Trouble(Exception):
    """A problem that its reader can act on, in one sentence."""


class Environment:
    """The Python environment of a checkout (`root`), and what is known about it without starting it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / ".venv"
        self.python = self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self.stamp = self.folder / "launch.stamp"
        self.log = self.folder / "launch.log"
        self.locks = {kind: root / "assistant" / "locks" / f"{kind}.txt" for kind in ("run", "test")}

    def stamped(self) -> str:
        """The digest in the stamp, "" where there is none; an environment that was moved here counts as half-made."""
        try:
            digest, _, place = self.stamp.read_text(encoding="utf-8", errors="replace").partition("\n")
        except OSError:
            return ""
        return digest if place.strip() == str(self.folder) else HALF_MADE

    def digest(self, kind: str) -> str:
        """SHA-256 over the lock, the project's own declaration and the environment's Python version."""
        configuration = self.folder / "pyvenv.cfg"
        text = configuration.read_text(encoding="utf-8", errors="replace") if configuration.exists() else ""
        version = re.search(r"^version\s*=\s*(\S+)", text, re.MULTILINE)
        found = hashlib.sha256((version[1] if version else "").encode())
        found.update(self.locks[kind].read_bytes() + (self.root / "pyproject.toml").read_bytes())
        return found.hexdigest()

    def ready(self, kind: str) -> bool:
        """Whether all of `kind` is installed (`test` holds all of `run`); costs milliseconds."""
        stamped = self.stamped() if self.python.exists() else ""
        return stamped == self.digest("test") or (kind == "run" and stamped == self.digest("run"))

    def write_stamp(self, digest: str) -> None:
        """Put `digest` into the stamp; a kill leaves the old one or the new one."""
        beside = self.stamp.with_suffix(".new")
        beside.write_text(f"{digest}\n{self.folder}\n", encoding="utf-8")
        beside.replace(self.stamp)


@contextlib.contextmanager
def step(place: str, title: str) -> Iterator[Callable[[], None]]:
    """One line of progress with the seconds that the block took; call what is yielded to let them tick."""
    line, start, terminal = f"[{place}] {title} … ", time.monotonic(), sys.stdout.isatty()
    print(line, end="", flush=True)

    def tick() -> None:
        if terminal:
            print(f"\r{line}{time.monotonic() - start:.0f} s", end="", flush=True)

    try:
        yield tick
    except BaseException:
        print(" failed", flush=True)
        raise
    print(("\r" + line if terminal else "") + f"{time.monotonic() - start:.1f} s", flush=True)


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[int]:
    """Hold `path` against every other process; says so and waits where one has it. The system frees it at a kill."""
    with path.open("a+", encoding="utf-8") as file:
        if not _locked(file.fileno()):
            print("Another launch is making the environment; waiting for it to end …", flush=True)
            while not _locked(file.fileno()):
                time.sleep(0.2)
        yield file.fileno()


def _locked(handle: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(handle, 0, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def prepare(environment: Environment, kind: str) -> None:
    """Leave an environment with all of `kind` behind, whatever was there before; `Trouble` where that cannot be."""
    if not environment.ready(kind):
        environment.folder.mkdir(exist_ok=True)
        with only_one(environment.folder / "launch.lock") as handle:
            if not environment.ready(kind):  # another launch may have made it while this one waited
                install(environment, kind, handle)


def install(environment: Environment, kind: str, handle: int) -> None:
    """Make or mend the environment, with a line for each step; `handle` is the lock's."""
    names = constraints(environment.locks[kind].read_text(encoding="utf-8"))
    torch = torch_requirement(environment.root)
    with step("1/5", f"Python {sys.version.split()[0]} and room on the disk"):
        free, needed = room(environment)
        if free < needed:
            raise Trouble(f"The disk has {free:.1f} GB free at {environment.root}; make room for {needed:.0f} GB.")
    installer = Installer(environment, handle, environment.stamped())
    environment.write_stamp(HALF_MADE)
    environment.log.write_bytes(b"")
    with step("2/5", "Python environment") as tick:
        installer.environment(tick)
    with step("3/5", f"{len(names)} packages") as tick:
        installer.pip(["--require-hashes", "--no-deps", "-r", str(environment.locks[kind])], tick)
    with step("4/5", torch) as tick:
        pinned = environment.folder / "launch.constraints"
        pinned.write_text("\n".join(names), encoding="utf-8")
        installer.pip([torch, "-c", str(pinned), *cpu_index()], tick)
    with step("5/5", "this project") as tick:
        installer.pip(["--no-deps", "--no-build-isolation", "-e", str(environment.root)], tick)
    environment.write_stamp(environment.digest(kind))


class Installer:
    """Runs venv and pip with their words in a file, and turns what they fail of into one sentence.

    `handle`, the lock's, is theirs too: they may outlive a killed launch. `before` is put back into the stamp where pip
    failed ahead of any change.
    """

    def __init__(self, to: Environment, handle: int, before: str) -> None:
        self.to, self.before, self.handles = to, before, () if os.name == "nt" else (handle,)

    def environment(self, tick: Callable[[], None]) -> None:
        """An interpreter with pip in the folder; what is whole is left as it is, anything else is made anew."""
        usable = [str(self.to.python), "-c", "import pip, sys; sys.exit(sys.version_info < (3, 11))"]
        whole = self.before != HALF_MADE and self.to.python.exists()
        if whole and not subprocess.run(usable, stderr=subprocess.DEVNULL, check=False).returncode:
            return
        clear(self.to.folder)
        self.before = ""
        if importlib.util.find_spec("ensurepip") is None:
            raise Trouble("This Python cannot make environments: `apt-get install python3-venv`, then start again.")
        base = getattr(sys, "_base_executable", sys.executable)  # the one behind this one, which may lie in the folder
        self._run([base, "-m", "venv", "--without-pip", str(self.to.folder)], tick)  # it would hide pip's words
        self._run([str(self.to.python), "-m", "ensurepip", "--default-pip"], tick)

    def pip(self, arguments: Sequence[str], tick: Callable[[], None]) -> None:
        """`pip install` with `arguments`."""
        options = ["--no-input", "--progress-bar=off", "--disable-pip-version-check", "--no-warn-script-location"]
        self._run([str(self.to.python), "-m", "pip", "install", *options, *arguments], tick)

    def _run(self, command: Sequence[str], tick: Callable[[], None]) -> None:
        # Settings meant for another place would send the packages there.
        elsewhere = {"PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PYTHONPATH", "PYTHONHOME"}
        variables = {name: value for name, value in os.environ.items() if name not in elsewhere}
        with self.to.log.open("ab") as log:
            start, root, handles = log.tell(), self.to.root, self.handles
            process = subprocess.Popen(command, stdout=log, stderr=log, env=variables, cwd=root, pass_fds=handles)
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
            tick()
        if process.returncode:
            said = self.to.log.read_bytes()[start:].decode(errors="replace")
            if "pip" in command and "Installing collected packages" not in said:
                self.to.write_stamp(self.before)
            raise Trouble(f"{reason(said)} (All that was said: {self.to.log})")


def reason(said: str) -> str:
    """The one sentence in what pip or venv said: what is wrong and what to do."""
    for pattern, sentence in REASONS.items():
        found = re.search(pattern, said, re.MULTILINE)
        if found:
            return sentence.format(*found.groups())
    errors = re.findall(r"(?mi)^error:? *(.+)", said) or said.strip().splitlines() or ["nothing"]
    return f"The installer stopped, saying {errors[-1]!r}: mend that, then start again."


def constraints(lock: str) -> list[str]:
    """The requirements of a lock without their hashes, as pip's `-c` reads them."""
    return re.findall(r"^(\w[^\\\n]*?) *\\?$", lock, re.MULTILINE)


def torch_requirement(root: Path) -> str:
    """The pin of torch in pyproject.toml; it stands in no lock, since each platform has builds of its own."""
    import tomllib

    declared = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    return next(str(text) for text in declared if re.match(r"torch\b\s*==", text))


def has_nvidia() -> bool:
    """Whether an NVIDIA driver is there."""
    library = Path(os.environ.get("SYSTEMROOT", "/"), "System32", "nvcuda.dll")
    return Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None or library.exists()


def cpu_index() -> list[str]:
    """What makes pip take torch's CPU build ("+cpu" is the higher version): no driver, and an index that answers in 3 s."""
    import urllib.request

    found = []

    def ask() -> None:  # in a thread, since looking up a name knows no timeout
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{CPU_INDEX}/torch/", timeout=3) as page:
            found.append(page.status)

    if has_nvidia() or sys.platform == "darwin":
        return []
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(3)
    return ["--extra-index-url", CPU_INDEX] if found == [200] else []


def room(environment: Environment) -> tuple[float, float]:
    """GB that are free for the environment, and that making it takes."""
    needed = 1.0 if environment.python.exists() else 10.0 if has_nvidia() else 3.0  # CUDA's libraries are most of it
    return shutil.disk_usage(environment.root).free / 1e9, needed


def clear(folder: Path) -> None:
    """Take everything out of `folder` but the lock that is held and the stamp that says it is half-made."""
    for path in folder.iterdir():
        if path.name not in ("launch.lock", "launch.stamp"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def become(environment: Environment, arguments: Sequence[str]) -> int:
    """Turn into the environment's Python with `arguments`, in the checkout; returns only on Windows."""
    command = [str(environment.python), *arguments]
    os.chdir(environment.root)
    sys.stdout.flush()
    if os.name == "nt":
        return subprocess.run(command, check=False).returncode
    os.execv(command[0], command)  # noqa: S606 - nothing may stand between a signal and the program


def serve(environment: Environment, options: argparse.Namespace) -> int:
    """Make the environment where needed, then be the program."""
    prepare(environment, "run")
    names = [name for name in ("host", "port", "home") if getattr(options, name) is not None]
    given = [word for name in names for word in (f"--{name}", str(getattr(options, name)))]
    return become(environment, ["-m", "assistant", "serve", *given] + ["--no-browser"] * options.no_browser)


def doctor(environment: Environment, options: argparse.Namespace) -> int:
    """The program's own examination; before there is an environment, what can be said without one."""
    stamped = environment.stamped()
    if environment.python.exists() and stamped not in ("", HALF_MADE):
        home = ["--home", str(options.home)] if options.home else []
        return become(environment, ["-m", "assistant", "doctor", *home])
    free, needed = room(environment)
    short = ": make room" if free < needed else ""
    with socket.socket() as probe:
        taken = ": taken, choose another with --port" if probe.connect_ex(("127.0.0.1", PORT)) == 0 else ""
    rows = [
        ("ok", "Python", f"{sys.version.split()[0]}, {sys.executable}"),
        ("bad", "environment", f"{environment.folder} is {stamped or 'not there yet'}: run `python launch.py`"),
        ("bad" if short else "ok", "disk", f"{free:.1f} GB free, {needed:.0f} GB needed{short}"),
        ("bad" if taken else "ok", "port", f"{PORT}{taken}"),
    ]
    print("\n".join(f"{verdict:<4} {name:<12} {found}" for verdict, name, found in rows))
    return 1


def test(environment: Environment, options: argparse.Namespace) -> int:
    """Every check there is."""
    prepare(environment, "test")
    chosen = [f"--{name}" for name in ("quick", "campaign", "gpu") if getattr(options, name)]
    return become(environment, ["tests/checks.py", *chosen, "--", *options.arguments])


def lock(environment: Environment, options: argparse.Namespace) -> int:
    """Both locks anew, out of pyproject.toml."""
    if not environment.python.exists():
        raise Trouble("The lock is made with a tool of the environment: run `python launch.py test` first.")
    return become(environment, ["tests/lock.py"] + ["--upgrade"] * options.upgrade)


def port(text: str) -> int:
    """A port number, as argparse reads it."""
    if not (text.isdecimal() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"expected a number from 0 (a free one) to 65535, found {text!r}")
    return int(text)


def folder(text: str) -> Path:
    """A folder from the caller's point of view: the program runs in the checkout."""
    return Path(text).expanduser().absolute()


def parser() -> argparse.ArgumentParser:
    """What may stand on the command line."""
    top = argparse.ArgumentParser(prog="launch.py", description="Make the environment, then serve.", allow_abbrev=False)
    top.set_defaults(run=serve)
    top.add_argument("--host", help="address to listen at (default: 127.0.0.1)")
    top.add_argument("--port", type=port, help=f"port to listen at, 0 takes a free one (default: {PORT})")
    top.add_argument("--home", type=folder, help="state folder (default: ASSISTANT_HOME, else var/)")
    top.add_argument("--no-browser", action="store_true", help="do not open the page in a browser")
    commands = top.add_subparsers(title="further commands")

    def command(run: Callable[[Environment, argparse.Namespace], int], summary: str) -> argparse.ArgumentParser:
        parser = commands.add_parser(run.__name__, help=summary, description=summary, allow_abbrev=False)
        parser.set_defaults(run=run)
        return parser

    which = command(test, "Run all checks; what is not known here goes to pytest.").add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="the inner loop: without the slow tests")
    which.add_argument("--campaign", action="store_true", help="only the long fault and load runs")
    which.add_argument("--gpu", action="store_true", help="only the tests that need a CUDA device")
    home = command(doctor, "Show what is in place, and what to do where it is not.").add_argument
    home("--home", type=folder, default=argparse.SUPPRESS, help="state folder")
    upgrade = command(lock, "Write assistant/locks/*.txt from pyproject.toml.").add_argument
    upgrade("--upgrade", action="store_true", help="move every pin to the newest version that fits")
    return top


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says; the exit code."""
    reader = parser()
    options, further = reader.parse_known_args(arguments)
    if further and options.run is not test:
        reader.error(f"unrecognized arguments: {' '.join(further)}")
    options.arguments = further
    if os.environ.get("ASSISTANT_HOME"):
        os.environ["ASSISTANT_HOME"] = str(folder(os.environ["ASSISTANT_HOME"]))
    environment = Environment(Path(__file__).resolve().parent)
    try:
        return int(options.run(environment, options))
    except Trouble as trouble:
        print(trouble, file=sys.stderr)
        return 1
    except OSError as error:
        cure = (
            "make room on that disk"
            if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
            else "see that it is there and yours"
        )
        print(f"{error.filename or environment.folder}: {error.strerror}: {cure}, then start again.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; the same command goes on from here.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
