"""From counts and what a kernel occupies to pairs per second."""

import os
from dataclasses import replace

import pytest

triton = pytest.importorskip("triton")

from tritonkeops.backends.kernel import Layout  # noqa: E402
from tritonkeops.backends.triton import predict as model  # noqa: E402
from tritonkeops.backends.triton.offline import compile_offline  # noqa: E402
from tritonkeops.backends.triton.predict import DEVICES, Prediction, counted, hidden, predict, resident  # noqa: E402
from tritonkeops.backends.triton.sass import PerPair, Usage  # noqa: E402
from tritonkeops.compiler import Program, Target  # noqa: E402

H200 = DEVICES["cuda:90"]
MANY = Layout((), 1 << 20, 1 << 20)
PEAK = 132 * 1.98e9 * 128 / 8  # pairs per second of eight instructions each


def kernel(**changes):
    program = Program("Exp(-SqDist(x,y))*b", ["x=Vi(3)", "y=Vj(3)", "b=Vj(1)"], "Sum", 1, 0, None)
    target = Target(backend="triton")
    schedule = replace(program.tile(target).schedule, block_i=512, block_j=16, num_warps=4, block_sum=1024)
    return program.triton_kernel(target, replace(schedule, **changes))


# ---- what fits on a multiprocessor ----


@pytest.mark.parametrize(
    ("registers", "num_warps", "shared", "blocks"),
    [
        (128, 4, 0, 4),
        (129, 4, 0, 3),
        (97, 4, 0, 4),  # handed out by 8 for each thread: 104
        (168, 4, 0, 3),
        (255, 8, 0, 1),
        (16, 1, 0, 32),  # blocks
        (16, 8, 0, 8),  # warps
        (32, 4, 75 << 10, 3),
        (32, 4, 114 << 10, 1),  # a kilobyte of each block is the driver's
        (32, 4, 227 << 10, 1),
        (32, 4, 228 << 10, 0),
    ],
)
def test_blocks_of_a_multiprocessor(registers, num_warps, shared, blocks):
    assert resident(Usage(registers, 0, shared), num_warps, H200) == blocks


def test_smaller_devices_hold_less():
    assert resident(Usage(16, 0, 0), 1, DEVICES["cuda:86"]) == 16
    assert resident(Usage(16, 0, 0), 8, DEVICES["cuda:89"]) == 6
    assert resident(Usage(32, 0, 120 << 10), 4, DEVICES["cuda:89"]) == 0


def test_a_block_may_ask_for_what_the_driver_leaves():
    """As `shared_memory_per_block_optin` of these devices says."""
    found = {name: device.block_shared for name, device in DEVICES.items()}
    assert (found["cuda:80"], found["cuda:89"], found["cuda:90"]) == (166912, 101376, 232448)


def test_more_warps_hide_more():
    assert hidden(0) == 0 and hidden(4) == 0.5 and hidden(8) == 0.75
    assert hidden(16) < hidden(32) < 1


def test_what_spills_or_has_no_room_does_not_fit():
    found = Prediction(PerPair({}, {"issue": 8}, 0), Usage(128, 0, 0), 4, 0.25, 1e12, "issue")
    assert found.fits
    assert not replace(found, usage=Usage(128, 8, 0)).fits
    assert not replace(found, resident=0).fits


# ---- what a call reaches ----


@pytest.fixture
def eight(monkeypatch):
    """Kernels of eight instructions per pair and so many registers, as if they were compiled."""

    def install(registers, shared=0):
        usage = Usage(registers, 0, shared)
        monkeypatch.setattr(model, "counted", lambda kernel, target: (PerPair({}, {"issue": 8.0}, 0), usage))

    return install


def test_many_rows_reach_what_warps_can_hide(eight):
    eight(128)
    found = predict(kernel(), "cuda:90", MANY)
    assert (found.resident, found.occupancy, found.bound_by) == (4, 0.25, "issue")
    assert found.pairs_per_second == pytest.approx(PEAK * hidden(16), rel=0.03)


def test_one_block_occupies_one_multiprocessor(eight):
    """A single tile of rows and of j: 4 warps on one of 132 multiprocessors."""
    eight(128)
    found = predict(kernel(), "cuda:90", Layout((), 512, 16))
    assert found.pairs_per_second == pytest.approx(PEAK * hidden(4) / 132)


def test_the_last_blocks_run_with_fewer_beside_them(eight):
    """Five blocks on each multiprocessor: four together, then one by itself."""
    eight(128)
    found = predict(kernel(splits=1), "cuda:90", Layout((), 5 * 132 * 512, 1600))
    assert found.pairs_per_second == pytest.approx(PEAK * 5 / (4 / hidden(16) + 1 / hidden(4)))


def test_rows_beyond_the_ends_are_work_for_nothing(eight):
    eight(128)
    whole = predict(kernel(splits=1), "cuda:90", Layout((5,), 512, 1600)).pairs_per_second
    half = predict(kernel(splits=1), "cuda:90", Layout((5,), 256, 1592)).pairs_per_second
    assert half == pytest.approx(whole / 2 * 1592 / 1600)


def test_parts_of_j_fill_the_device(eight):
    eight(128)
    few = Layout((), 512, 1 << 20)
    rates = [predict(kernel(splits=n), "cuda:90", few).pairs_per_second for n in (1, 16, 128)]
    assert rates[1] == pytest.approx(16 * rates[0]) and rates[2] == pytest.approx(128 * rates[0])
    assert predict(kernel(), "cuda:90", few).pairs_per_second > rates[2], "the launch's own choice"


def test_blocks_take_turns_at_tensor_cores():
    """Products take 8 clocks of a pair, the rest 4 where nothing is hidden, so 8 with 4 warps, and 5.33 with 8."""
    lanes = {"issue": 4 * 128.0, "tensor": 8 * 1894.0}
    assert model._clocks(lanes, 1, 4, H200) == 16
    assert model._clocks(lanes, 1, 8, H200) == pytest.approx(8 + 4 / 0.75)
    assert model._clocks(lanes, 2, 4, H200) == 8
    assert model._clocks({"issue": 4 * 128.0}, 1, 4, H200) == 8


def test_nothing_to_do_is_done_at_no_rate(eight):
    eight(128)
    for layout in (Layout((), 0, 16), Layout((), 16, 0), Layout((0,), 16, 16)):
        assert predict(kernel(), "cuda:90", layout).pairs_per_second == 0


def test_what_has_no_room_has_no_rate(eight):
    eight(128, shared=1 << 20)
    found = predict(kernel(), "cuda:90", MANY)
    assert found.pairs_per_second == 0 and not found.fits


# ---- compiled ----

needs_compiler = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted")


@needs_compiler
def test_a_kernel_is_counted_and_predicted():
    found = predict(kernel(), "cuda:90", MANY)
    assert 7 < found.counted.lanes["issue"] < 12 and found.usage.registers > 32 and found.fits
    assert 2e12 < found.pairs_per_second < 4.18e12


@needs_compiler
def test_spills_are_seen():
    assert predict(kernel(registers=32), "cuda:90", MANY).usage.spilled


@needs_compiler
def test_memory_that_is_asked_for_at_the_launch_counts():
    """Four warps have rows j of one tile each, and add them up in shared memory: 32 numbers of each."""
    few = kernel(block_i=32, block_j=128, block_sum=0, packed=False)
    shared = compile_offline(few, "cuda:90").shared
    assert shared >= 4 * 32 * 4 and counted(few, "cuda:90")[1].shared == shared
