"""The device server with a Python and a TVM of its own, for a device that has neither: `cprune devices bundle`.

Python and the C library come from Debian's arm64 packages (apt verifies their signatures), TVM and numpy from their
aarch64 wheels on the package index that pip uses.  Nothing is installed on the device: a shell script starts Python
through the loader of the bundle, so that it runs on any Linux kernel, Android's included.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from cprune.targets import serve
from cprune.targets.errors import BrokenWorld, UserError
from cprune.targets.target import find

PACKAGES = (
    *("libc6", "libgcc-s1", "libstdc++6", "zlib1g", "libexpat1", "libffi8", "libbz2-1.0", "liblzma5", "libuuid1"),
    *("libcrypt1", "libssl3", "libgomp1", "libzstd1"),
)
WHEELS = ("ml_dtypes", "psutil", "cloudpickle", "typing_extensions")
UNUSED = ("libtvm_compiler.so", "libtvm_runtime_cuda.so", "tests", "include", "test", "cython")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux2014_aarch64", "manylinux_2_17_aarch64")
TRIPLE = "aarch64-linux-gnu"

RUN = """#!/bin/sh
# Starts the device server: run.sh --tracker HOST:PORT --key K   (--help tells the rest)
here=$(cd "$(dirname "$0")" && pwd)
export TVM_USE_RUNTIME_LIB=1 PYTHONHOME="$here/python" PYTHONPATH="$here/site" PYTHONDONTWRITEBYTECODE=1
export TMPDIR="${TMPDIR:-$here/tmp}"
mkdir -p "$TMPDIR"
exec $CPRUNE_EMULATOR "$here/lib/ld-linux-aarch64.so.1" --library-path "$here/lib" "$here/python/bin/python3" \\
  "$here/serve.py" "$@"
"""


def write(out: Path, target: str, cache: Path | None, say: Callable[[str], None]) -> int:
    """Write the bundle as a .tar.gz and return its bytes.  `cache` keeps what was downloaded.

    Raises UserError for a target without a bundle and on a machine without apt, BrokenWorld where a download fails.
    """
    if not find(target).triple.startswith("aarch64"):
        raise UserError(f"there is no bundle for {target}", "Bundles are for linux-arm64 and android-arm64.")
    missing = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        raise UserError(
            f"a bundle is made of Debian's arm64 packages, and {' and '.join(missing)} is missing here",
            "Make it on a Debian machine or in a Debian container; see docs/devices.md for other ways.",
        )
    if not out.name.endswith(".tar.gz"):
        raise UserError(f"{out} should end in .tar.gz")
    keep = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cprune" / "bundle"
    keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="cprune-bundle-") as scratch:
        root = Path(scratch) / "cprune-device"
        (root / "lib").mkdir(parents=True)
        python = _python(keep, root, say)
        _wheels(keep, root, python, say)
        shutil.copy2(serve.__file__, root / "serve.py")
        (root / "run.sh").write_text(RUN)
        (root / "run.sh").chmod(0o755)
        say("packing")
        part = out.with_name(f"{out.name}.part")
        with tarfile.open(part, "w:gz", compresslevel=6) as archive:
            archive.add(root, root.name)
        part.replace(out)
    return out.stat().st_size


def _python(keep: Path, root: Path, say: Callable[[str], None]) -> str:
    """Unpack Python and its libraries; return its version, "3.11"."""
    apt = _Apt(keep / "apt")
    if not list((keep / "debs").glob("libpython3*-stdlib_*.deb")):
        say("asking apt for arm64 packages")
        apt.update()
        python = apt.python()
        names = [f"python{python}-minimal", f"libpython{python}-minimal", f"libpython{python}-stdlib", *PACKAGES]
        say("downloading Python for arm64")
        apt.download(names, keep / "debs")
    unpacked = root.parent / "unpacked"
    for deb in sorted((keep / "debs").glob("*.deb")):
        _run(["dpkg-deb", "-x", str(deb), str(unpacked)], f"unpack {deb.name}")
    found = re.search(r"libpython(3\.\d+)-stdlib", " ".join(p.name for p in (keep / "debs").iterdir()))
    if found is None:
        raise BrokenWorld(f"the packages in {keep / 'debs'} hold no Python; delete that folder and try again")
    python = found.group(1)
    for folder in (f"lib/{TRIPLE}", f"usr/lib/{TRIPLE}"):
        for library in sorted((unpacked / folder).glob("*.so*")):
            if library.is_file():
                shutil.copy(library, root / "lib" / library.name)
    loader = next(unpacked.rglob("ld-linux-aarch64.so.1"), None)
    if loader is None:
        raise BrokenWorld(f"the packages in {keep / 'debs'} hold no loader; delete that folder and try again")
    shutil.copy(loader, root / "lib" / "ld-linux-aarch64.so.1")
    (root / "python" / "bin").mkdir(parents=True)
    shutil.copy(unpacked / "usr" / "bin" / f"python{python}", root / "python" / "bin" / "python3")
    shutil.copytree(
        unpacked / "usr" / "lib" / f"python{python}",
        root / "python" / "lib" / f"python{python}",
        ignore=shutil.ignore_patterns("test", "tests", "idlelib", "lib2to3", "ensurepip", "sitecustomize.py"),
        ignore_dangling_symlinks=True,
    )
    return python


def _wheels(keep: Path, root: Path, python: str, say: Callable[[str], None]) -> None:
    """Unpack TVM's runtime and what it imports."""
    import zipfile

    here = ("apache-tvm", "apache-tvm-ffi", "numpy")
    requirements = [f"{name}=={version(name)}" for name in here] + list(WHEELS)
    folder = keep / f"wheels-{python}-{version('apache-tvm')}-{version('numpy')}"
    if not (folder / ".complete").exists():
        say("downloading TVM for arm64")
        platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
                   "--python-version", python, *platforms, "--dest", str(folder), *requirements]  # fmt: skip
        _run(command, "download the aarch64 wheels")
        (folder / ".complete").touch()
    site = root / "site"
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist() if not set(Path(n).parts) & set(UNUSED)]
            archive.extractall(site, names)


class _Apt:
    """apt for another architecture, in folders of our own: no root, nothing on this machine changes."""

    def __init__(self, folder: Path) -> None:
        for name in ("state/lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.options = [
            *("-o", "APT::Architecture=arm64", "-o", "APT::Architectures=arm64"),
            *("-o", f"Dir::State={folder / 'state'}", "-o", "Dir::State::status=/dev/null"),
            *("-o", f"Dir::Cache={folder / 'cache'}", "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User="),
            *("-o", "Acquire::Languages=none", "-o", "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false"),
        ]

    def update(self) -> None:
        _run(["apt-get", *self.options, "-q", "update"], "read the package lists")

    def python(self) -> str:
        """Return the version of Debian's python3."""
        told = _run(["apt-cache", *self.options, "show", "python3-minimal"], "look for python3")
        found = re.search(r"^Version: (3\.\d+)", told, re.MULTILINE)
        if found is None:
            raise BrokenWorld("apt knows no python3 for arm64; see docs/devices.md for other ways")
        return found.group(1)

    def download(self, names: Sequence[str], folder: Path) -> None:
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        _run(["apt-get", *self.options, "-q", "download", *names], "download Debian packages", part)
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)


def _run(command: Sequence[str], what: str, folder: Path | None = None) -> str:
    """Return what a command prints.  Raises BrokenWorld with the last line of what it complained of."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False, timeout=1800)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BrokenWorld(f"cannot {what}: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise BrokenWorld(f"cannot {what}: {said[-1][:300]}")
    return done.stdout
