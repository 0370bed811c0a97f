"""Packs the installed packages that the other machine lacks into tar files below a size limit.

Started by `prepare.sh` with the interpreter whose packages are wanted.  What is there already is in
`there.txt`; so are large packages that only parts of ours need that the check does not use.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import pathlib
import re
import sys
import tarfile

from packaging.requirements import Requirement

HERE = pathlib.Path(__file__).resolve().parent


def wanted(
    root: str, extras: set[str], there: set[str]
) -> dict[str, importlib.metadata.Distribution]:
    """Distributions that ``root`` needs, itself and those of ``there`` left out."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = [(root, extras)]
    while waiting:
        name, chosen = waiting.pop()
        key = canonical(name)
        if key in found or key in there:
            continue
        found[key] = distribution = importlib.metadata.distribution(name)
        for text in distribution.requires or ():
            need = Requirement(text)
            marker = need.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in ("", *chosen)):
                waiting.append((need.name, need.extras))
    del found[canonical(root)]
    return found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def files_of(distribution: importlib.metadata.Distribution) -> list[tuple[pathlib.Path, str]]:
    """(file, its place under site-packages), without caches and scripts."""
    found = []
    for f in distribution.files or ():
        place = str(f)
        if not place.startswith("..") and "__pycache__" not in place and f.locate().exists():
            found.append((pathlib.Path(f.locate()), place))
    return found


def main(argv: list[str] | None = None) -> int:
    """Writes OUT/00.tar, 01.tar, ... and prints what is in each."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--out", type=pathlib.Path, required=True, help="folder of the tar files")
    p.add_argument("--limit-mb", type=int, default=45, help="largest tar file (default: 45)")
    args = p.parse_args(argv)
    lines = (HERE / "there.txt").read_text(encoding="utf-8").splitlines()
    there = {canonical(line) for line in lines if line and not line.startswith("#")}
    limit, packs = args.limit_mb * 1_000_000, []
    sized = [
        (sum(f.stat().st_size for f, _ in files_of(d)), name, d)
        for name, d in wanted("evolving-rl-jax", {"train", "gguf"}, there).items()
    ]
    for size, name, distribution in sorted(sized, reverse=True, key=lambda x: x[:2]):
        if size > limit:
            print(f"{name} has {size / 1e6:.0f} MB, more than --limit-mb={args.limit_mb}; if the check "
                  "can do without it, name it in there.txt", file=sys.stderr)  # fmt: skip
            return 2
        room = [pack for pack in packs if pack[0] + size <= limit]
        pack = room[0] if room else [0, []]
        if not room:
            packs.append(pack)
        pack[0] += size
        pack[1].append((name, distribution))
    for i, (size, members) in enumerate(packs):
        with tarfile.open(args.out / f"{i:02}.tar", "w") as tar:
            for _, distribution in members:
                for file, place in files_of(distribution):
                    tar.add(file, place)
        print(f"{i:02}.tar {size / 1e6:.1f} MB: {' '.join(name for name, _ in members)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
