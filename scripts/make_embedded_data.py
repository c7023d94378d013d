"""Make the data sets inside the package from the official files.

    python scripts/make_embedded_data.py FOLDER            write src/freewheel/data/embedded
    python scripts/make_embedded_data.py FOLDER --check    compare with what is there, write nothing

FOLDER, or the environment variable FREEWHEEL_DATA, holds ``fashion-mnist/`` with the four official files
and ``tinyshakespeare/tinyshakespeare.txt.gz`` (the official text, gzipped). Run it in an environment with
freewheel installed. The draw is seeded, the gzip headers carry neither name nor time: the same compression
library gives the same bytes. Another one (zlib-ng, say) may compress differently, so ``--check`` compares the
contents, whose sums are recorded as well.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import sys
from pathlib import Path

from freewheel.data.fashion import fashion_mnist
from freewheel.data.idx import encode
from freewheel.data.shakespeare import FILE
from freewheel.data.small import FOLDER, SUMS

SEED = 2017
SIZES = {"train": 10_000, "test": 2_000}
TEXT_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"  # of the official text


def main() -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description="Make the data sets inside the package.")
    parser.add_argument("folder", nargs="?", default=os.environ.get("FREEWHEEL_DATA"), type=Path)
    parser.add_argument("--output", default=FOLDER, type=Path)
    parser.add_argument("--check", action="store_true", help="compare contents, write nothing")
    arguments = parser.parse_args()
    if arguments.folder is None:
        parser.error("name the folder with the official files, or set FREEWHEEL_DATA")
    files = build(Path(arguments.folder))
    if arguments.check:
        return check(files, arguments.output)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (arguments.output / name).write_bytes(data)
    (arguments.output / SUMS).write_text(json.dumps(record(files), indent=2) + "\n", encoding="utf-8")
    print(f"wrote {sum(map(len, files.values()))} bytes in {len(files)} files to {arguments.output}")
    return 0


def build(folder: Path) -> dict[str, bytes]:
    """Return the content of each file."""
    files: dict[str, bytes] = {}
    for split, size in SIZES.items():
        part = fashion_mnist(split, folder, streamed=False).subset(size, SEED)
        name = f"fashion-mnist-small-{split}"
        files[f"{name}-images-idx3-ubyte.gz"] = encode(part.images.squeeze(1).numpy())
        files[f"{name}-labels-idx1-ubyte.gz"] = encode(part.labels.numpy().astype("uint8"))
    files[FILE] = _text(folder / "tinyshakespeare" / "tinyshakespeare.txt.gz")
    return files


def record(files: dict[str, bytes]) -> dict[str, object]:
    """Return what is written beside the files: sizes, and sums of the files and of their contents."""
    entries = {
        name: {"size": len(data), "sha256": _sha256(data), "content_sha256": _sha256(gzip.decompress(data))}
        for name, data in sorted(files.items())
    }
    return {"made_by": "scripts/make_embedded_data.py", "seed": SEED, "files": entries}


def check(files: dict[str, bytes], output: Path) -> int:
    """Compare with what is there; return an exit status."""
    there = json.loads((output / SUMS).read_text(encoding="utf-8"))["files"]
    wrong = [
        name
        for name, data in files.items()
        if _sha256(gzip.decompress(data)) != there.get(name, {}).get("content_sha256")
        or _sha256((output / name).read_bytes()) != there[name]["sha256"]
        or gzip.decompress((output / name).read_bytes()) != gzip.decompress(data)
    ]
    print("differ: " + ", ".join(wrong) if wrong else f"{len(files)} files have the recorded contents")
    return 1 if wrong or set(there) != set(files) else 0


def _text(path: Path) -> bytes:
    text = gzip.decompress(path.read_bytes())
    if _sha256(text) != TEXT_SHA256:
        raise SystemExit(f"{path}: expected the text with sha256 {TEXT_SHA256}, got {_sha256(text)}")
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as stream:
        stream.write(text)
    return buffer.getvalue()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
