"""Try the built distributions as a user gets them: ``python .ci/check_distribution.py DIRECTORY [VERSION]``.

Each is installed into an environment of its own: alone, when ``bindsock`` and ``bindsock.testing`` must be there and nothing
else, and the wheel once more with what the examples need, all of which must be importable.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
EXTRAS = "aiohttp,aioquic,anyio,cli,httpx,trio,uvloop"
OTHERS = ("asyncssh", "redis", "websockets")
ALONE = """
import importlib.metadata, sys
import bindsock, bindsock.testing, bindsock.testing.lab
import bindsock.cli
assert bindsock.__file__.startswith(sys.prefix), bindsock.__file__
installed = {d.metadata["Name"].lower() for d in importlib.metadata.distributions()} - {"pip", "setuptools"}
assert installed == {"bindsock"}, installed
tops = {f.parts[0] for f in importlib.metadata.files("bindsock")}
assert tops <= {"bindsock", "..", f"bindsock-{importlib.metadata.version('bindsock')}.dist-info"}, tops
print(importlib.metadata.version("bindsock"))
"""
EXAMPLE = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='imported')"


def run(*command: str | Path) -> str:
    return subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True, cwd="/").stdout.strip()


def environment(directory: Path, *requirements: str) -> Path:
    venv.create(directory, with_pip=True)
    python = directory / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements)
    return python


def main(distributions: Path, expected: str | None) -> None:
    wheels, sources = sorted(distributions.glob("*.whl")), sorted(distributions.glob("*.tar.gz"))
    if len(wheels) != 1 or len(sources) != 1:
        sys.exit(f"{distributions} has {len(wheels)} wheels and {len(sources)} sdists, not one of each")
    with tempfile.TemporaryDirectory() as scratch:
        for file in (*wheels, *sources):
            python = environment(Path(scratch) / file.name, str(file))
            version = run(python, "-c", ALONE)
            told = run(python.parent / "bindsock", "--version")
            if told != f"bindsock {version}" or expected not in (None, version):
                sys.exit(f"{file.name} says {told!r}, and is of version {version}; expected {expected or 'any'}")
            print(f"{file.name}: version {version}, no other package")
        python = environment(Path(scratch) / "examples", f"{wheels[0]}[{EXTRAS}]", *OTHERS)
        examples = sorted((REPOSITORY / "examples").glob("*.py"))
        for example in examples:
            run(python, "-W", "error", "-c", EXAMPLE, example)
        print(f"{wheels[0].name}: all {len(examples)} examples can be imported")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2] if len(sys.argv) > 2 else None)
