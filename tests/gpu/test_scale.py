"""What only a device can show: sizes beyond 31 bits, graphs, streams, several devices."""

import pytest
import torch

from tritonkeops.torch import Genred

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use"),
]
GAUSSIAN = ("Exp(-SqDist(x,y))*b", ["x=Vi(3)", "y=Vj(3)", "b=Vj(1)"])


def clouds(M, N, dim=3, dtype=torch.float32, seed=0, device="cuda"):
    generator = torch.Generator(device).manual_seed(seed)
    return [torch.rand(n, d, generator=generator, device=device).to(dtype) for n, d in ((M, dim), (N, dim), (N, 1))]


def exact(x, y, b):
    x, y, b = x.double(), y.double(), b.double()
    return torch.cat([torch.exp(-((row - y) ** 2).sum(1)) @ b for row in x])[:, None]


def free_bytes():
    return torch.cuda.mem_get_info()[0]


def test_a_trillion_pairs():
    x, y, b = clouds(10**6, 10**6)
    found = Genred(*GAUSSIAN, axis=1)(x, y, b)
    rows = torch.randperm(len(x))[:64].cuda()
    torch.testing.assert_close(found[rows].double(), exact(x[rows], y, b), rtol=1e-5, atol=0)
    assert found.isfinite().all()


@pytest.mark.parametrize("reduction", ["ArgMin", "Min_ArgMin", "ArgKMin"])
def test_rows_beyond_what_a_float_counts(reduction):
    """The nearest rows lie beyond 2^24, where neighbouring integers are one float32."""
    N, M = 2**24 + 5000, 8
    y = torch.full((N, 1), 100.0, device="cuda")
    wanted = torch.arange(M, device="cuda") * 3 + 2**24 + 1
    x = torch.arange(M, device="cuda", dtype=torch.float32)[:, None]
    y[wanted] = x
    options = {"opt_arg": 3} if reduction == "ArgKMin" else {}
    found = Genred("SqDist(x,y)", ["x=Vi(1)", "y=Vj(1)"], reduction_op=reduction, axis=1, **options)(x, y)
    rows = found[1] if reduction == "Min_ArgMin" else found
    assert torch.equal(rows[:, 0], wanted)


def test_an_input_beyond_2_to_the_31_elements():
    D = 16
    N = 2**31 // D + 4096
    if free_bytes() < 3 * 4 * N * D:
        pytest.skip("needs more memory")
    y = torch.zeros(N, D, dtype=torch.float16, device="cuda")
    y[-1], y[2] = 1, 0.5
    x = torch.stack([torch.ones(D), torch.full((D,), 0.5)]).half().cuda()
    found = Genred("SqDist(x,y)", [f"x=Vi({D})", f"y=Vj({D})"], reduction_op="ArgMin", axis=1)(x, y)
    assert found.flatten().tolist() == [N - 1, 2]


def test_an_output_beyond_2_to_the_31_elements():
    D = 16
    M = 2**31 // D + 4096
    if free_bytes() < 3 * 4 * M * D:
        pytest.skip("needs more memory")
    x, y = torch.zeros(M, 1, device="cuda"), torch.ones(3, D, device="cuda")
    x[-1] = 2
    found = Genred("x*y", ["x=Vi(1)", f"y=Vj({D})"], reduction_op="Sum", axis=1)(x, y)
    assert torch.equal(found[-1], torch.full((D,), 6.0, device="cuda")) and not found[:-1].any()


def test_capture_and_replay():
    inputs = clouds(3000, 5000)
    kernel = Genred(*GAUSSIAN, axis=1)
    kernel(*inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = kernel(*inputs)
    for given, fresh in zip(inputs, clouds(3000, 5000, seed=1), strict=True):
        given.copy_(fresh)
    graph.replay()
    torch.testing.assert_close(result, kernel(*inputs), rtol=0, atol=0)


def test_capture_before_a_first_call_says_what_to_do():
    inputs = clouds(300, 500)
    kernel = Genred("Exp(-2.125*SqDist(x,y))*b", GAUSSIAN[1], axis=1)
    with pytest.raises(RuntimeError, match="call it once"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        kernel(*inputs)
    torch.cuda.synchronize()


def test_the_current_stream_is_used():
    """The inputs are written late on a side stream: a kernel on another one would read what was there before."""
    x, y, b = clouds(2000, 2000)
    kernel = Genred(*GAUSSIAN, axis=1)
    wanted = kernel(x, y, 2 * b)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(10**8)
        b.mul_(2)
        found = kernel(x, y, b)
    side.synchronize()
    assert torch.equal(found, wanted)


def test_calls_do_not_wait():
    inputs = clouds(2000, 2000)
    kernel = Genred(*GAUSSIAN, axis=1)
    kernel(*inputs)
    torch.cuda.synchronize()
    torch.cuda._sleep(10**9)
    busy = torch.cuda.Event()
    kernel(*inputs)
    busy.record()
    assert not busy.query()
    torch.cuda.synchronize()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_each_device_has_its_own():
    kernel = Genred(*GAUSSIAN, axis=1)
    first, second = clouds(500, 700), [x.to("cuda:1") for x in clouds(500, 700)]
    a, b = kernel(*first), kernel(*second)
    assert b.device.index == 1 and torch.equal(a.cpu(), b.cpu())
    with pytest.raises(ValueError, match="expected one device"):
        kernel(first[0], *second[1:])


@pytest.mark.parametrize("reduction", ["Sum", "LogSumExp", "ArgKMin"])
def test_repeated_calls_agree_to_the_bit(reduction):
    options = {"opt_arg": 5} if reduction == "ArgKMin" else {}
    kernel = Genred("SqDist(x,y)", GAUSSIAN[1][:2], reduction_op=reduction, axis=1, **options)
    x, y, _ = clouds(777, 33_333)
    first = kernel(x, y)
    assert all(torch.equal(kernel(x, y), first) for _ in range(5))


def test_equal_points_are_at_distance_zero():
    """The derivative of the Laplacian kernel is 0 there by convention; a rounding error would give it a direction."""
    x, _, b = clouds(1000, 1000)
    x = 100 + x
    gradient = Genred("Grad(Exp(-Sqrt(SqDist(x,y)))*b, x, e)", [*GAUSSIAN[1], "e=Vi(1)"], axis=1)
    found = gradient(x, x.clone(), b, torch.ones_like(b))
    wanted = gradient(x.cpu().double(), x.cpu().double(), b.cpu().double(), torch.ones_like(b).cpu().double())
    torch.testing.assert_close(found.cpu().double(), wanted, rtol=1e-3, atol=1e-3)
