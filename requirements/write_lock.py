"""Writes lock.txt, and the hashes of torchrec-*.txt, from the direct pins: `requirements/lock.sh`.

pip resolves the direct pins on the Python that runs this.
The versions it chooses are then looked up for the other Pythons.
So the hashes cover every file that an install on Linux x86-64 may need.
torch and the CUDA libraries that its CUDA build pins are left out: their files differ by flavour.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DIRECT = ("base.txt", "torch.txt", "dev.txt")
PYTHONS = ("3.11", "3.12", "3.13")
OF_TORCH = re.compile(r"^(torch|triton|nvidia-.*|cuda-.*)$")
HEADER = """\
# Every version, direct and transitive, with the hashes of its files for Linux x86-64 and Python 3.11 to 3.13.
# `make setup` installs it with `--require-hashes --no-deps`, then torch.txt and torchrec-*.txt.
# Written by requirements/lock.sh.
# torch and its CUDA libraries are left to torch.txt, because their files differ by flavour.
"""

Package = dict[str, Any]
Hashes = dict[str, set[str]]


def report(*arguments: str) -> list[Package]:
    """Returns what pip would install, without installing it."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
    done = subprocess.run([*command, "--report", "-", *arguments], stdout=subprocess.PIPE, check=True)
    found: list[Package] = json.loads(done.stdout)["install"]
    return found


def name_of(package: Package) -> str:
    return re.sub(r"[-_.]+", "-", package["metadata"]["name"]).lower()


def pin_of(package: Package) -> str:
    return f"{name_of(package)}=={package['metadata']['version']}"


def collect(pins: list[str], hashes: Hashes) -> list[Package]:
    """Adds the hash of each pin's file for each Python, and returns the packages of the last one."""
    packages: list[Package] = []
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(pins))
        file.flush()
        for python in PYTHONS:
            target = ("--python-version", python, "--target", "unused")
            packages = report("--no-deps", *target, "--requirement", file.name)
            for package in packages:
                sha256 = package["download_info"]["archive_info"]["hashes"]["sha256"]
                hashes.setdefault(pin_of(package), set()).add(sha256)
    return packages


def missing(packages: list[Package]) -> set[str]:
    """Names that a package requires on some Python and that the lock lacks."""
    from pip._vendor.packaging.requirements import Requirement

    present = {name_of(package) for package in packages}
    lacking = set()
    for package in packages:
        for text in package["metadata"].get("requires_dist", []):
            requirement = Requirement(text)
            name = re.sub(r"[-_.]+", "-", requirement.name).lower()
            for python in PYTHONS:
                environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
                wanted = requirement.marker is None or requirement.marker.evaluate(environment)
                if wanted and name not in present and not OF_TORCH.match(name):
                    lacking.add(f"{name} (for {name_of(package)} on Python {python})")
    return lacking


def entry(pin: str, hashes: Hashes) -> str:
    return " \\\n".join([pin, *(f"    --hash=sha256:{sha256}" for sha256 in sorted(hashes[pin]))])


def main() -> None:
    chosen = report(*(part for name in DIRECT for part in ("--requirement", str(HERE / name))))
    pins = sorted(pin_of(package) for package in chosen if not OF_TORCH.match(name_of(package)))
    hashes: Hashes = {}
    if lacking := missing(collect(pins, hashes)):
        sys.exit(f"lock: add these to base.txt: {', '.join(sorted(lacking))}")
    lock = HEADER + "".join(entry(pin, hashes) + "\n" for pin in pins)
    for name in ("torchrec-cpu.txt", "torchrec-cuda.txt"):
        path = HERE / name
        lines = path.read_text(encoding="utf-8").splitlines()
        direct = [line.split()[0] for line in lines if "==" in line and not line.startswith("#")]
        collect(direct, hashes)
        comments = [line for line in lines if line.startswith("#")]
        text = "\n".join([*comments, *(entry(pin, hashes) for pin in direct)]) + "\n"
        path.write_text(text, encoding="utf-8")
    (HERE / "lock.txt").write_text(lock, encoding="utf-8")


if __name__ == "__main__":
    main()
