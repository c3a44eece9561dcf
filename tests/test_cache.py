"""Kept kernels: shared by processes, rebuilt when spoilt, replaced when the directory or the compiler fails."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from tritonkeops import cache
from tritonkeops.backends.c.build import BuildError, compiler
from tritonkeops.torch import Genred

needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C compiler")
ROOT = Path(__file__).parent.parent
FORMULA = "Exp(-SqDist(x,y)*0.125)"
CALL = f"""
import sys, torch
from tritonkeops.torch import Genred
x = torch.arange(15, dtype=torch.float64).reshape(5, 3) / 10
result = Genred("{FORMULA}", ["x = Vi(3)", "y = Vj(3)"], axis=1)(x, x + 1)
expected = torch.exp(-torch.cdist(x, x + 1) ** 2 * 0.125).sum(1, keepdim=True)
torch.testing.assert_close(result, expected)
print("right")
"""


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("TRITONKEOPS_CACHE_DIR", str(folder))
    return folder


def start(code: str = CALL, **environment: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out, err


def compute() -> torch.Tensor:
    """A new Genred's result, and that it is right."""
    x = torch.rand(5, 3, dtype=torch.float64)
    result = Genred(FORMULA, ["x = Vi(3)", "y = Vj(3)"], axis=1)(x, x + 1)
    assert isinstance(result, torch.Tensor)
    torch.testing.assert_close(result, torch.exp(-(torch.cdist(x, x + 1) ** 2) * 0.125).sum(1, keepdim=True))
    return result


def libraries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.so"))


# Files --------------------------------------------------------------------------------------------------------------


def test_what_is_kept_is_found(empty_cache: Path) -> None:
    key = cache.digest("a", "b")
    assert cache.find(key) is None
    path = cache.keep(key, b"content", ".txt", "a title")
    assert cache.find(key) == path and path.read_bytes() == b"content" and path.parent == empty_cache
    assert [(entry.path, entry.title, entry.size) for entry in cache.entries()] == [(path, "a title", 7)]


def test_digests_tell_parts_apart() -> None:
    assert len({cache.digest("ab", "c"), cache.digest("a", "bc"), cache.digest("abc"), cache.digest("abc", "")}) == 4


@pytest.mark.parametrize("spoil", [b"", b"conten", b"CONTENT", b"content and more"])
def test_a_file_that_was_altered_counts_as_absent(spoil: bytes) -> None:
    path = cache.keep("key", b"content", ".txt", "title")
    path.write_bytes(spoil)
    assert cache.find("key") is None
    assert cache.keep("key", b"content", ".txt", "title") == path and cache.find("key") == path


@pytest.mark.parametrize(
    "record", ["", "{", "[]", "null", '{"file": "x"}', '{"file": 3, "sha256": 4}', '"text"', "\xff\xfe"]
)
def test_a_record_that_cannot_be_read_counts_as_absent(empty_cache: Path, record: str) -> None:
    cache.keep("key", b"content", ".txt", "title")
    (empty_cache / "key.json").write_text(record, encoding="latin-1")
    assert cache.find("key") is None and list(cache.entries()) == []


def test_a_missing_file_counts_as_absent() -> None:
    cache.keep("key", b"content", ".txt", "title").unlink()
    assert cache.find("key") is None
    assert [entry.size for entry in cache.entries()] == [0]


def test_clear_removes_ours_only(empty_cache: Path) -> None:
    cache.keep(cache.digest("key"), b"content", ".so", "title")
    others = {empty_cache / name for name in ("notes.md", "package.json", "notes-1.txt", "my-prog.c")}
    for path in others:
        path.write_text("mine")
    assert cache.clear() == 2
    assert set(empty_cache.iterdir()) == others


def test_writing_leaves_no_parts(empty_cache: Path) -> None:
    for n in range(5):
        cache.keep(f"key{n}", b"x" * n, ".txt", "title")
    assert not list(empty_cache.glob(".part*"))
    assert len(list(cache.entries())) == 5


def test_where_files_go_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITONKEOPS_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.directory() == tmp_path / "xdg" / "tritonkeops"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.directory().is_relative_to(tmp_path / "home")


# Kernels ------------------------------------------------------------------------------------------------------------


@needs_compiler
def test_a_kernel_is_compiled_once(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute()
    assert len(libraries(empty_cache)) == 1
    monkeypatch.setattr("tritonkeops.backends.c.build._compile", lambda *args: pytest.fail("compiled again"))
    compute()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache directory that a process of its own has filled: a library that is loaded here must not be cut short."""
    folder = tmp_path_factory.mktemp("compiled")
    finish(start(TRITONKEOPS_CACHE_DIR=str(folder)))
    return folder


@needs_compiler
@pytest.mark.parametrize("spoil", ["truncated", "empty", "altered", "removed", "no record", "half a record"])
def test_spoilt_kernels_are_rebuilt(empty_cache: Path, compiled: Path, spoil: str) -> None:
    shutil.copytree(compiled, empty_cache)
    (library,), (record,) = libraries(empty_cache), list(empty_cache.glob("*.json"))
    content = library.read_bytes()
    if spoil == "removed":
        library.unlink()
    elif spoil == "no record":
        record.unlink()
    elif spoil == "half a record":
        record.write_text(record.read_text()[:20])
    else:
        library.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "altered": content[::-1]}[spoil])
    compute()
    assert cache.find(record.stem) is not None


RACE = """
import os, torch, torch.testing, tritonkeops.torch
ready, go = os.pipe(), os.pipe()
children = []
for _ in range(8):
    child = os.fork()
    if not child:
        os.close(go[1])
        os.read(go[0], 1)  # returns when the parent lets go, at once for all
        try:
            exec(CALL)
        finally:
            os._exit(0 if "result" in globals() else 1)
    children.append(child)
os.close(go[0])
os.close(go[1])
print([os.waitpid(child, 0)[1] for child in children])
"""


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_eight_processes_race(empty_cache: Path) -> None:
    out, err = finish(start(f"CALL = {CALL.replace('print', 'str')!r}\n{RACE}"))
    assert (out, err) == (f"{[0] * 8}\n", "")
    assert not list(empty_cache.glob(".part*"))
    (record,) = empty_cache.glob("*.json")
    assert cache.find(record.stem) is not None


@needs_compiler
def test_eight_threads_race(empty_cache: Path) -> None:
    """Each with a Genred of its own, all of one formula: one compilation."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            compute()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    assert len(libraries(empty_cache)) == 1


def test_a_directory_that_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path through a file cannot be made by anyone, root included; a temporary directory serves, and is said once."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRITONKEOPS_CACHE_DIR", str(tmp_path / "file" / "cache"))
    compute()
    compute()
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "tritonkeops"]
    assert "cannot write the cache directory" in warning and str(tmp_path / "file" / "cache") in warning
    assert cache.directory().is_dir()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_directory(empty_cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    empty_cache.mkdir()
    empty_cache.chmod(stat.S_IRUSR | stat.S_IXUSR)
    compute()
    assert "cannot write the cache directory" in caplog.text


@needs_compiler
def test_a_directory_that_is_removed_meanwhile(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next kernel is built again, and so is the directory; a source that fails is kept there too."""
    compute()
    shutil.rmtree(empty_cache)
    compute()
    assert len(libraries(empty_cache)) == 1
    shutil.rmtree(empty_cache)
    monkeypatch.setenv("CC", fake_compiler(tmp_path, "exit 1"))
    with pytest.raises(BuildError):
        compute()
    assert len(list(cache.entries())) == 1


# Compilers ----------------------------------------------------------------------------------------------------------


def fake_compiler(folder: Path, script: str) -> str:
    path = folder / "fakecc"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    "environment,why",
    [
        ({"PATH": "/nonexistent", "CC": ""}, "($CC, cc, gcc, clang)"),
        ({"CC": "no-such-compiler -O2"}, ": $CC is 'no-such-compiler -O2'"),
    ],
    ids=["none", "CC"],
)
def test_no_compiler(environment: dict[str, str], why: str) -> None:
    """One clear warning, and the torch back end computes the same."""
    out, err = finish(start(CALL + CALL.replace("0.125", "0.25").replace("* 0.25)", "* 0.25)"), **environment))
    assert out == "right\nright\n"
    assert "no C compiler found" in err and why in err and len(err.strip().splitlines()) == 1


@needs_compiler
def test_a_compiler_that_fails(tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", fake_compiler(tmp_path, 'echo "kernel.c:7: the moon is in the way" >&2; exit 1'))
    with pytest.raises(BuildError) as caught:
        compute()
    message = str(caught.value)
    assert "the moon is in the way" in message and "SqDist(x, y)" in message
    (kept,) = empty_cache.glob("*-failed-*.c")
    assert str(kept) in message and "SqDist(x, y)" in kept.read_text()
    (entry,) = cache.entries()
    assert entry.path == kept and entry.title.startswith("failed: Sum_Reduction(Exp(-SqDist(x, y)")
    assert cache.clear() == 2 and not list(empty_cache.iterdir())


@needs_compiler
@pytest.mark.parametrize("script,said", [
    ("exit 0", "fakecc"),
    ('for last; do :; done; while [ "$1" != "-o" ]; do shift; done; echo junk > "$2"', "cannot load"),
])  # fmt: skip
def test_a_compiler_that_makes_nothing_of_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    monkeypatch.setenv("CC", fake_compiler(tmp_path, script))
    with pytest.raises(BuildError, match=said):
        compute()


@needs_compiler
def test_another_compiler_s_kernels_are_not_used(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute()
    real = compiler()
    assert real is not None
    monkeypatch.setenv("CC", fake_compiler(tmp_path, f'exec {real[0]} "$@"'))
    compute()
    assert len(list(empty_cache.glob("*.json"))) == 2


@needs_compiler
def test_arguments_in_cc(monkeypatch: pytest.MonkeyPatch) -> None:
    real = compiler()
    assert real is not None
    monkeypatch.setenv("CC", f"{real[0]} -DSOMETHING='1 + 1'")
    compute()


# Stages printed and written -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted,stages", [
    ("", []), ("ast", ["ast"]), ("formula,tile", ["formula", "tile"]), ("all", ["ast", "formula", "tile", "source"]),
    (" source , ast ", ["ast", "source"]), ("unknown", []),
])  # fmt: skip
@needs_compiler
def test_debug_prints_stages(
    wanted: str, stages: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITONKEOPS_DEBUG", wanted)
    compute()
    out, err = capfd.readouterr()
    printed = [line[3:] for line in err.splitlines() if line in ("// ast", "// formula", "// tile", "// source")]
    assert out == "" and printed == stages


def test_debug_warns_of_words_that_are_no_stage(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, however many formulas are compiled."""
    for wanted in ("formula, tiel", "formula, tiel", "", "all", " tile,,source "):
        monkeypatch.setenv("TRITONKEOPS_DEBUG", wanted)
        Genred("x", ["x = Vi(1)"])
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "tritonkeops"]
    assert warning == "TRITONKEOPS_DEBUG=formula, tiel: expected some of ast, formula, tile, source, all"


@needs_compiler
def test_dump_writes_numbered_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITONKEOPS_DUMP", str(tmp_path / "deep" / "dump"))
    compute()
    files = sorted(path.name for path in (tmp_path / "deep" / "dump").iterdir())
    assert [name.split("-")[1] for name in files] == ["ast.txt", "formula.txt", "tile.txt", "source.c"]
    numbers = [int(name.split("-")[0]) for name in files]
    assert numbers == sorted(set(numbers))
    assert capfd.readouterr() == ("", "")
    assert "tile.program" in (tmp_path / "deep" / "dump" / files[2]).read_text()
