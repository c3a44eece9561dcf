"""What a call hands to Triton's launcher, seen by a driver that is none: no GPU is needed.

CPU tensors stand for a GPU's. Kernels are compiled for compute capability 9.0 and never run.
"""

import gc
import math
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted: nothing is launched", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import driver  # noqa: E402

from tritonkeops.backends.triton import build  # noqa: E402
from tritonkeops.backends.triton.emitter import PACK_ROWS  # noqa: E402
from tritonkeops.runtime import call  # noqa: E402
from tritonkeops.torch import Genred  # noqa: E402

STREAM = 77
POINTERS = {"*fp16": torch.float16, "*bf16": torch.bfloat16, "*fp32": torch.float32, "*fp64": torch.float64,
            "*i32": torch.int32, "*i64": torch.int64}  # fmt: skip
POINTS = ["x = Vi(3)", "y = Vj(3)"]
GAUSSIAN = ("Exp(-SqDist(x, y)) * b", [*POINTS, "b = Vj(1)"])


# ---- a driver that records ----


@dataclass
class Call:
    """A launch: the kernel's name and signature, the grid, the stream and the arguments."""

    name: str
    signature: dict[str, str]
    grid: tuple[int, int, int]
    stream: int
    values: tuple[Any, ...]

    @property
    def role(self):
        others = ("pack_i", "pack_j", "split_i", "split_j", "merge")
        return next((role for role in others if self.name.endswith(role)), "reduce")

    def __getitem__(self, name):
        return self.values[list(self.signature).index(name)]


class Utils:
    def load_binary(self, *args):
        return 1, 1, 16, 0, 1024

    def get_device_properties(self, device):
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32, "max_num_regs": 65536}

    def unload_module(self, *args):
        pass


def recording(calls):
    class Launcher:
        def __init__(self, source, metadata):
            self.name, self.signature = source.fn.__name__, source.signature

        def __call__(self, x, y, z, stream, function, packed, metadata, enter, leave, *values):
            calls.append(Call(self.name, self.signature, (x, y, z), stream, values))

    class Driver:
        utils, launcher_cls = Utils(), Launcher

        def get_current_target(self):
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self):
            return 0

        def get_current_stream(self, device):
            return STREAM

    return Driver()


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("triton")


@pytest.fixture(autouse=True)
def calls(monkeypatch, folder):
    """The launches made so far."""
    found = []
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    monkeypatch.setattr(driver, "_active", recording(found))
    monkeypatch.setattr(build, "_processors", lambda device: 132)
    monkeypatch.setattr(build, "_current_device", lambda device: device.index)
    monkeypatch.setattr(call, "_elsewhere", lambda *args: None)
    yield found
    gc.collect()  # kernels are unloaded by the driver that loaded them


def gpu(function, *args, **how):
    return function(*args, backend="GPU", **how)


def kernel_of(function):
    """The Triton kernel of a function's one target."""
    (kernel,) = function._call.program._kernels.values()
    return kernel


def points(M, N, dtype=torch.float32, batch=()):
    return [torch.zeros(*batch, n, d, dtype=dtype) for n, d in ((M, 3), (N, 3), (N, 1))]


# ---- arguments ----

CASES = {
    "small": (*GAUSSIAN, "Sum", None, [(10, 3), (10, 3), (10, 1)]),
    "split": (*GAUSSIAN, "Sum", None, [(2000, 3), (10_000, 3), (10_000, 1)]),
    "whole": (*GAUSSIAN, "Sum", None, [(2000, 3), (100, 3), (100, 1)]),
    "batches": (*GAUSSIAN, "LogSumExp", None, [(2, 1, 70, 3), (2, 3, 5000, 3), (3, 5000, 1)]),
    "shared j": (*GAUSSIAN, "Sum", None, [(5, 300, 3), (9000, 3), (9000, 1)]),
    "one row": (*GAUSSIAN, "Sum", None, [(1, 3), (10**5, 3), (10**5, 1)]),
    "no rows j": (*GAUSSIAN, "Sum", None, [(300, 3), (0, 3), (0, 1)]),
    "long vectors": (
        "Exp(-SqDist(x, y)) * y", ["x = Vi(40)", "y = Vj(40)"], "Sum", None, [(3, 600, 40), (3, 20_000, 40)],
    ),
    "nearest": ("SqDist(x, y)", POINTS, "ArgKMin", 3, [(300, 3), (50_000, 3)]),
    "many nearest": ("SqDist(x, y)", POINTS, "KMin_ArgKMin", 40, [(2, 300, 3), (50_000, 3)]),
    "parameter": ("Exp(-p * SqDist(x, y))", [*POINTS, "p = Pm(1)"], "Min_ArgMin", None,
                  [(2, 300, 3), (2, 9000, 3), (2, 1)]),
}  # fmt: skip
every_case = pytest.mark.parametrize("name", CASES)


def run(name, dtype=torch.float32, **how):
    """The function, its arguments and its outputs."""
    formula, aliases, reduction, k, shapes = CASES[name]
    function = Genred(formula, aliases, reduction, axis=1, opt_arg=k, precision="direct", **how)
    args = [torch.zeros(shape, dtype=dtype) for shape in shapes]
    outputs = gpu(function, *args)
    return function, args, outputs if isinstance(outputs, tuple) else (outputs,)


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_arguments_are_those_of_the_signature(name, dtype, calls):
    """In number, order and type; data are the caller's own tensors, results those that the call returns."""
    function, args, outputs = run(name, dtype)
    kernel = kernel_of(function)
    for each in calls:
        params = kernel.emitted.params[each.role]
        constants = ["SPLIT"] if each.role == "reduce" else []
        assert [*(p.name for p in params), *constants] == list(each.signature)
        assert len(each.values) == len(each.signature)
        for value, kind in zip(each.values, each.signature.values(), strict=True):
            if kind in POINTERS:
                assert isinstance(value, torch.Tensor)
                assert value.numel() == 0 or value.dtype == POINTERS[kind] or value is each["value"]
            elif kind == "constexpr":
                assert isinstance(value, bool)
            else:
                assert type(value) is int and abs(value) < 2 ** (int(kind[1:]) - 1)
        for p in params:
            value = each[p.name]
            if p.role == "data":
                assert value is args[p.input]
            elif p.role == "row":
                assert value == args[p.input].stride(-2)
            elif p.role in ("value", "index"):
                wanted = outputs[0 if p.role == "value" or len(outputs) == 1 else 1]
                assert value.data_ptr() == wanted.data_ptr()
    reduce = next(each for each in calls if each.role == "reduce")
    assert reduce["M"] == args[0].shape[-2]
    assert {each["N"] for each in calls if "N" in each.signature} == {args[1].shape[-2]}


ONE = torch.tensor([1])
PAIRS = {
    "ranges": ({"ranges": [torch.tensor([[10, 150]]), ONE, torch.tensor([[0, 50]])] * 2}, {"table", "spans", "tiles"}),
    "band": ({"mask": "i<=j"}, {"low", "high"}),
    "lists": ({"neighbors": torch.zeros(300, 7, dtype=torch.int32)}, {"start", "columns"}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("pattern", PAIRS)
def test_patterns_pass_their_tables(pattern, dtype, calls):
    """Of the types that the signature says, to one program per tile of each batch entry; j is not split."""
    options, wanted = PAIRS[pattern]
    gpu(Genred(*GAUSSIAN, axis=1), *points(300, 200, dtype, batch=(2,)), **options)
    reduce = calls[-1]
    assert reduce.role == "reduce" and wanted <= set(reduce.signature) and "SPLIT" not in reduce.signature
    for value, kind in zip(reduce.values, reduce.signature.values(), strict=True):
        assert value.dtype == POINTERS[kind] if kind in POINTERS else type(value) is int
    if pattern == "ranges":  # 10 rows before the cluster, its 140 in two tiles, and 150 after it in two more
        assert reduce["tiles"] == 5 and reduce.grid == (10, 1, 1) and reduce["table"].tolist()[1] == [10, 128, 0, 1]
    before = len(calls)
    gpu(Genred(*GAUSSIAN, axis=1), *points(300, 200, dtype, batch=(2,)))
    assert not wanted & set(calls[before:][-1].signature)


@every_case
def test_grids_cover_rows_and_batches(name, calls):
    function, args, outputs = run(name)
    kernel, by_role = kernel_of(function), {each.role: each for each in calls}
    schedule, reduce = kernel.schedule, by_role["reduce"]
    M, N = args[0].shape[-2], args[1].shape[-2]
    entries = math.prod(outputs[0].shape[: outputs[0].shape.index(M)])
    tiles = -(-M // schedule.block_i)
    assert reduce.grid[0] == tiles * entries and reduce.grid[2] == 1
    splits, part = reduce.grid[1], reduce["part"]
    assert (splits - 1) * part < max(N, 1) <= max(splits * part, 1) and part % schedule.block_j == 0
    assert reduce["SPLIT"] is (splits > 1) is ("merge" in by_role)
    if splits > 1:
        assert by_role["merge"].grid == (tiles * entries, 1, 1) and by_role["merge"]["splits"] == splits
    for axis, length, block in (("i", M, schedule.block_i), ("j", N, schedule.block_j)):
        if f"pack_{axis}" in by_role:
            rows = -(-length // block) * block
            step = reduce[f"packed_{axis}_batch"] if f"packed_{axis}_batch" in reduce.signature else 0
            tables = entries if step else 1
            assert by_role[f"pack_{axis}"].grid == (tables * -(-rows // PACK_ROWS), 1, 1)
            assert step in (0, rows * kernel.emitted.columns[f"packed_{axis}"])


@every_case
def test_workspaces_are_aligned_and_large_enough(name, calls):
    function, _, _ = run(name)
    kernel = kernel_of(function)
    schedule, emitted = kernel.schedule, kernel.emitted
    reduce = next(each for each in calls if each.role == "reduce")
    slots = reduce.grid[0] * reduce.grid[1] if reduce.grid[1] > 1 or emitted.held else 0
    for word, size in (("parts", emitted.floats), ("parts_index", emitted.indices)):
        if word in reduce.signature and slots:
            assert reduce[word].numel() >= slots * size * schedule.block_i
    for axis, length, block in (("i", "M", schedule.block_i), ("j", "N", schedule.block_j)):
        word = f"packed_{axis}"
        if word in reduce.signature and reduce[length]:
            step = reduce[f"{word}_batch"] if f"{word}_batch" in reduce.signature else 0
            rows = -(-reduce[length] // block) * block
            entries = reduce.grid[0] // -(-reduce["M"] // schedule.block_i)
            assert reduce[word].numel() >= max(step * entries, rows * emitted.columns[f"packed_{axis}"])
    for each in calls:
        for p in emitted.params[each.role]:
            if p.role in ("parts", "parts_index", "packed_i", "packed_j"):
                assert each[p.name].data_ptr() % 16 == 0 and each[p.name].is_contiguous()
                assert each[p.name] is reduce[p.name]


def test_one_workspace_serves_what_all_batch_entries_share(calls):
    _, args, _ = run("shared j")
    reduce = next(each for each in calls if each.role == "reduce")
    assert reduce["packed_j_batch"] == 0 and reduce["packed_j"].numel() < 2 * 4 * args[1].shape[0]


# ---- launches ----


@pytest.mark.parametrize(("name", "roles"), [
    ("small", ["reduce"]),
    ("one row", ["reduce", "merge"]),
    ("whole", ["pack_j", "reduce"]),
    ("split", ["pack_j", "reduce", "merge"]),
    ("long vectors", ["pack_i", "pack_j", "reduce", "merge"]),
    ("many nearest", ["pack_j", "reduce", "merge"]),
])  # fmt: skip
def test_order_of_launches(name, roles, calls):
    """On the driver's current stream."""
    run(name)
    assert [each.role for each in calls] == roles
    assert {each.stream for each in calls} == {STREAM}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_products_are_launched_before_their_fallback(dtype, calls):
    """All with one flag, that is 0 before; the center of the rows j is an argument that the caller does not give."""
    function = Genred("Exp(-SqDist(x, y)) * b", ["x = Vi(40)", "y = Vj(40)", "b = Vj(9)"], axis=1)
    args = [torch.ones(shape, dtype=dtype) for shape in ((3, 600, 40), (20_000, 40), (20_000, 9))]
    gpu(function, *args)
    roles = [each.role for each in calls]
    weights = ["pack_j"] if dtype == torch.float32 else []
    assert roles[: len(weights) + 4] == [*weights, "split_i", "split_j", "reduce", "merge"]
    assert roles[-2:] == ["reduce", "merge"] and calls[-1].name != calls[len(weights) + 3].name
    flags = [each["far"] for each in calls if "far" in each.signature]
    assert len({id(flag) for flag in flags}) == 1 and flags[0].dtype == torch.int32 and not flags[0].any()
    assert all("far" in each.signature for each in calls if each.role in ("split_i", "split_j", "reduce", "merge"))
    if dtype == torch.float32:
        center = next(each["center"] for each in calls if "center" in each.signature)
        assert center.shape == (40,) and (center > 1.1).all()  # ones, times the root of log2(e)
    for each in calls:
        for value, kind in zip(each.values, each.signature.values(), strict=True):
            if kind in POINTERS and value.numel():
                assert value.dtype == POINTERS[kind] or value is each["value"]


@pytest.mark.parametrize("shapes", [((0, 3), (5, 3)), ((0, 300, 3), (300, 3)), ((300, 3), (0, 3))])
def test_nothing_to_do(shapes, calls):
    """No rows i, no launch; no rows j, no packing."""
    function = Genred("SqDist(x, y)", POINTS, axis=1)
    gpu(function, *map(torch.zeros, shapes))
    assert [each.role for each in calls] == ([] if 0 in shapes[0] else ["reduce"])


@pytest.mark.parametrize(("M", "N", "launches"), [(10, 10, 1), (2000, 10_000, 3)])
def test_a_call_allocates_little_and_waits_for_nothing(M, N, launches, calls, monkeypatch):
    """One tensor for the result and one for each workspace."""
    function, args = Genred(*GAUSSIAN, axis=1), points(M, N)
    gpu(function, *args)
    calls.clear()

    def forbidden(*args, **options):
        raise AssertionError("the call waits for the device")

    for name in ("item", "cpu", "tolist", "nonzero", "__bool__", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, forbidden)
    monkeypatch.setattr(torch.cuda, "synchronize", forbidden)
    empty, made = torch.empty, []
    monkeypatch.setattr(torch, "empty", lambda *args, **options: made.append(empty(*args, **options)) or made[-1])
    gpu(function, *args)
    assert len(calls) == launches and len(made) == launches


@pytest.mark.parametrize(("M", "N"), [(10, 10), (2000, 10_000)])
def test_time_of_a_call(M, N, calls):
    """Printed (pytest -s), not judged."""
    function, args = Genred(*GAUSSIAN, axis=1), points(M, N)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(200):
            gpu(function, *args)
        times.append((time.perf_counter() - start) / 200)
    print(f"{M} x {N}: {min(times) * 1e6:.1f} us in Python for {len(calls) // 1000} launches")
    assert len(calls) % 1000 == 0


# ---- compilation ----


@pytest.fixture
def compilations(monkeypatch):
    """The names of what is compiled from here on."""
    original, found = triton.compile, []

    def compile(source, **options):
        found.append(source.fn.__name__)
        return original(source, **options)

    monkeypatch.setattr(triton, "compile", compile)
    return found


def test_kernels_are_compiled_once_and_kept(compilations):
    function = Genred("Exp(-SqDist(x, y))", POINTS, axis=1)
    for M, N in ((2000, 10_000), (2000, 10_000), (1999, 10_001)):
        gpu(function, torch.zeros(M, 3), torch.zeros(N, 3))
    assert len(compilations) == len(set(compilations)) == 3
    kernel = kernel_of(function)
    kept = dict(kernel._compiled)
    gpu(function, torch.zeros(2000, 3), torch.zeros(10_000, 3))
    assert kept.keys() == kernel._compiled.keys()
    assert all(kernel._compiled[key] is kept[key] for key in kept)
    gpu(function, torch.zeros(2000, 3), torch.zeros(100, 3))  # not split: SPLIT is compiled in
    assert len(compilations) == 4 and kernel_of(function) is kernel


@pytest.fixture
def capturing(monkeypatch):
    """A CUDA graph is being captured as long as `state["on"]`."""
    state = {"on": True}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state["on"])
    return state


def test_kernels_are_compiled_before_a_capture(capturing, calls):
    function, args = Genred(*GAUSSIAN, axis=1), points(2000, 10_000)
    with pytest.raises(RuntimeError, match=r"Sum_Reduction\(Exp.*call it once .* before the capture"):
        gpu(function, *args)
    capturing["on"] = False
    gpu(function, *args)
    capturing["on"] = True
    calls.clear()
    gpu(function, *args)
    assert [each.role for each in calls] == ["pack_j", "reduce", "merge"]
    with pytest.raises(RuntimeError, match="with arguments of these shapes"):
        gpu(function, *points(2000, 100))


# ---- devices ----


@pytest.mark.parametrize("current", [None, 1])
def test_launches_are_made_on_the_tensors_device(current, calls, monkeypatch):
    """Tensors that are not on the current device: the launch switches to theirs, and back."""
    entered = []

    class Module:
        @staticmethod
        @contextmanager
        def device(which):
            entered.append((which, len(calls)))
            yield
            entered.append((None, len(calls)))

    monkeypatch.setattr(build, "_current_device", lambda device: current)
    monkeypatch.setattr(torch, "get_device_module", lambda kind: Module)
    gpu(Genred(*GAUSSIAN, axis=1), *points(2000, 10_000))
    assert entered == ([] if current is None else [(torch.device("cpu"), 0), (None, 3)])


class Elsewhere(torch.Tensor):
    """A CPU tensor that says that it is on a GPU."""

    device = property(lambda self: torch.device("cuda", 0))


@pytest.mark.parametrize("backend", ["CPU", "auto"])
def test_devices_that_do_not_fit(backend):
    function = Genred("SqDist(x, y)", POINTS, axis=1)._call  # below PyTorch's dispatcher, which knows no subclass
    x, y = torch.zeros(4, 3), torch.zeros(5, 3)
    far = [each.as_subclass(Elsewhere) for each in (x, y)]
    if backend == "CPU":
        with pytest.raises(ValueError, match=r"x = Vi\(3\) is on cuda:0: expected a CPU tensor for backend='CPU'"):
            function(far, backend="CPU")
    with pytest.raises(ValueError, match=r"y = Vj\(3\) is on cuda:0 and x = Vi\(3\) on cpu: expected one device"):
        function([x, far[1]], backend=backend)


def test_a_device_that_no_back_end_serves():
    x, y = torch.zeros(4, 3, device="meta"), torch.zeros(5, 3, device="meta")
    with pytest.raises(NotImplementedError, match="is on meta: expected a CPU, CUDA, ROCm or XPU tensor"):
        Genred("SqDist(x, y)", POINTS, axis=1)(x, y)
