"""The command line, run in this process or as one of its own, and what it works on."""

import io
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass

import pytest
from builders import picture

from sugar_cli import main


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def cli(capfd, monkeypatch):
    """Runs a command in this process."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # put back what the command changes

    def run(*command):
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(part) for part in command])
        return Result(ended.value.code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def process():
    """Runs a command as a process of its own."""

    def run(*command, **options):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "sugar_cli", *map(str, command)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            **options,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def album(tmp_path_factory):
    """A folder of photographs, one with a caption, and a note."""
    folder = tmp_path_factory.mktemp("cli") / "album"
    (folder / "sea").mkdir(parents=True)
    for number, name in enumerate(["a.png", "b.jpg", "sea/c.png"]):
        buffer = io.BytesIO()
        picture(number).save(buffer, format="PNG")
        (folder / name).write_bytes(buffer.getvalue())
    (folder / "sea" / "c.txt").write_text("a boat on the sea.")
    (folder / "note.md").write_text("a dog.")
    return folder
