"""Files kept between runs: `TRITONKEOPS_CACHE_DIR`, else the user's cache directory.

Entries are named by a hash of all that went into them, written under a temporary name and moved into place, so that any
number of processes may share the directory. Each carries the hash of its content: one that does not match (cut short,
altered) counts as absent.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_PART = ".part-tritonkeops-"
_OURS = re.compile(rf"[0-9a-f]{{32}}(-failed)?(\.json|-[0-9a-f]{{8}}\.\w+)|{re.escape(_PART)}.*")
log = logging.getLogger("tritonkeops")


def directory() -> Path:
    """Where entries are kept; made if need be. A directory that cannot be written is replaced by a temporary one."""
    return _writable(os.environ.get("TRITONKEOPS_CACHE_DIR") or str(_user_cache() / "tritonkeops"))


def _user_cache() -> Path:
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"])
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")


@lru_cache
def _writable(path: str) -> Path:
    chosen = Path(path)
    try:
        chosen.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=chosen):
            return chosen
    except OSError as error:
        chosen = Path(tempfile.mkdtemp(prefix="tritonkeops-"))
        log.warning("cannot write the cache directory %s (%s): kernels go to %s for this process", path, error, chosen)
        return chosen


@dataclass(frozen=True)
class Entry:
    """A kept file, what it is for, and when it was written."""

    path: Path
    title: str
    written: float

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0


def digest(*parts: str) -> str:
    """A name for the parts together."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def find(key: str) -> Path | None:
    """The file kept under a key, if it is there and whole."""
    try:
        record = json.loads(_record(key).read_text())
        path = directory() / record["file"]
        whole = hashlib.sha256(path.read_bytes()).hexdigest() == record["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return path if whole else None


def keep(key: str, content: bytes, suffix: str, title: str) -> Path:
    """Keep content under a key; returns the file. Files are named by content too, so none is ever overwritten."""
    sha = hashlib.sha256(content).hexdigest()
    path = directory() / f"{key}-{sha[:8]}{suffix}"
    _write(path, content)
    record = {"file": path.name, "sha256": sha, "title": title, "written": time.time()}
    _write(_record(key), json.dumps(record).encode())
    return path


def _record(key: str) -> Path:
    return directory() / f"{key}.json"


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)  # it may have been removed meanwhile
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=_PART)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    os.replace(name, path)


def entries() -> Iterator[Entry]:
    """What is kept, oldest first; records that cannot be read are left out."""
    found = []
    for record in directory().glob("*.json"):
        try:
            fields = json.loads(record.read_text())
            found.append(Entry(directory() / fields["file"], fields["title"], fields["written"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    yield from sorted(found, key=lambda entry: entry.written)


def clear() -> int:
    """Remove every file of ours, known by its name, and no other; returns how many."""
    files = [path for path in directory().iterdir() if _OURS.fullmatch(path.name)]
    for path in files:
        path.unlink(missing_ok=True)
    return len(files)
