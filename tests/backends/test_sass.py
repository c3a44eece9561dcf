"""Counting machine code, on listings of small kernels for sm_90, and on a few instructions with labels."""

import re
from pathlib import Path

import pytest

from tritonkeops.backends.triton import sass
from tritonkeops.backends.triton.sass import (
    Usage,
    count,
    everything,
    executed,
    hot_loop,
    lanes,
    loops,
    parse,
    per_pair,
    usage,
)

LISTINGS = Path(__file__).parent / "listings"


def listing(name):
    return parse((LISTINGS / f"{name}.sass").read_text())


def assemble(text):
    """Instructions, one a line, some with a label: "start: FADD R1, R1, R2"; branches name labels."""
    split = [re.fullmatch(r"\s*(?:(\w+): )?(.*)", line).groups() for line in text.strip().splitlines()]
    place = {label: f"{16 * n:#x}" for n, (label, _) in enumerate(split) if label}
    resolved = [re.sub(r"\w+$", lambda word: place.get(word[0], word[0]), line) for _, line in split]
    return parse("\n".join(f"/*{16 * n:04x}*/ {line} ;" for n, line in enumerate(resolved)))


def only(text, pairs=1):
    return per_pair(assemble(text), pairs)


# --- instructions ---------------------------------------------------------------------------------------


def test_an_instruction_has_its_parts():
    code = listing("gaussian")
    assert len(code) == 49
    branch = next(instruction for instruction in code if instruction.address == 0xB0)
    assert (branch.predicate, branch.opcode, branch.operands, branch.target) == ("@!P0", "BRA", "0x2e0", 0x2E0)


def test_encodings_beside_the_instructions_are_no_instructions():
    text = """
        Function : first
    /*0000*/                   LDC R1, c[0x0][0x28] ;                           /* 0x00000a00ff017b82 */
                                                                                /* 0x000fe20000000800 */
    /*0010*/               @P0 EXIT ;                                           /* 0x000000000000794d */
        Function : second
    /*0000*/                   FADD R1, R1, R1 ;
    """
    assert [instruction.opcode for instruction in parse(text)] == ["LDC", "EXIT"]


@pytest.mark.parametrize(
    ("line", "kind", "pipe"),
    [
        ("FFMA.FTZ R5, -R4, R4, -R5", "fp32", {"fp32": 1}),
        ("FFMA2 R4, R4, R6, R8", "fp32", {"fp32": 2}),
        ("FMNMX R5, R4, R5, PT", "alu", {"alu": 1}),
        ("FSETP.GEU.AND P0, PT, R5, R6, PT", "alu", {"alu": 1}),
        ("MUFU.EX2 R5, R5", "mufu", {"mufu": 1}),
        ("I2F.S64 R5, R6", "mufu", {"mufu": 1}),
        ("I2FP.F32.S32 R7, R14", "alu", {"alu": 1}),
        ("DFMA R4, R4, R6, R8", "fp64", {"fp64": 1}),
        ("IMAD.WIDE R4, R8, 0x4, R4", "imad", {"imad": 1}),
        ("IMAD.MOV.U32 R4, RZ, RZ, R8", "move", {}),
        ("HFMA2.MMA R14, -RZ, RZ, 0, 0", "move", {}),
        ("HFMA2.MMA R14, R1, R2, R3", "fp32", {"fp32": 1}),
        ("LDS.128 R4, [R17+0x10]", "shared", {"memory": 4}),
        ("LDL.LU.64 R4, [R1]", "local", {"memory": 2}),
        ("LDG.E R4, desc[UR4][R2.64]", "global", {"memory": 1}),
        ("LDG.E.64 R4, desc[UR4][R2.64]", "global", {"memory": 2}),
        ("SHFL.BFLY PT, R1, R2, 0x1, 0x1f", "shuffle", {"memory": 1}),
        ("BAR.SYNC.DEFER_BLOCKING 0x0", "barrier", {}),
        ("ULDC.64 UR4, c[0x0][0x208]", "constant", {}),
        ("UIADD3 UR4, UR4, 0x2, URZ", "uniform", {}),
        ("HMMA.16816.F32 R4, R8, R12, R4", "mma", {"tensor": 64}),
        ("HMMA.1688.F32.TF32 R4, R8, R12, R4", "mma", {"tensor": 64}),
        ("HGMMA.64x128x8.F32.TF32 R24, R4, gdesc[UR8], R24", "mma", {"tensor": 1024}),
    ],
)
def test_an_instruction_is_counted_where_it_is_executed(line, kind, pipe):
    code = assemble(line)
    assert count(code) == {kind: 1}
    assert lanes(code) == {"issue": 1, **pipe}


# --- loops ----------------------------------------------------------------------------------------------


def test_a_plain_loop():
    """Two pairs in an iteration: a load of four words, seven float32 operations and an exponential each."""
    (loop,) = loops(listing("gaussian"))
    assert (loop.header, loop.depth, loop.trips, len(loop.body)) == (0x170, 0, None, 23)
    assert loop.path == loop.own == loop.body
    found = per_pair(listing("gaussian"), pairs=2)
    assert found.lanes == {"issue": 11.5, "memory": 4, "alu": 1.5, "fp32": 7, "mufu": 1}
    assert found.kinds == {"global": 1, "uniform": 0.5, "alu": 1.5, "fp32": 7, "mufu": 1, "branch": 0.5}
    assert found.skipped == 0


def test_a_slow_path_is_not_on_the_hot_path():
    """Eight pairs in an iteration; where one is near enough, a loop over them inserts them."""
    found = loops(listing("nearest"))
    hot, slow = found
    assert hot_loop(found) == hot and hot.contains(slow) and not slow.contains(hot)
    assert (hot.header, hot.depth, hot.trips, len(hot.path), len(hot.own)) == (0x120, 0, None, 41, 43)
    assert (slow.header, slow.depth, slow.trips, len(slow.body)) == (0x3C0, 1, 8, 13)
    assert executed(hot, found).total() == 41
    assert everything(hot, found).total() == 43 + 8 * 13
    counted = per_pair(listing("nearest"), pairs=8)
    assert counted.lanes == {"issue": 5.125, "imad": 0.125, "memory": 1.125, "fp32": 2, "alu": 1.375}
    assert counted.skipped == (2 + 8 * 13) / 8


def test_a_loop_with_constant_bounds_counts_as_often_as_it_goes_around():
    """64 components, four in an iteration of the inner loop."""
    found = loops(listing("looped"))
    outer, inner = found
    assert (outer.trips, inner.trips, inner.depth) == (None, 16, 1)
    assert hot_loop(found) == outer
    counted = per_pair(listing("looped"), pairs=1)
    assert counted.lanes["fp32"] == 2 * 64 + 2
    assert counted.lanes["issue"] == len(outer.own) + 16 * len(inner.own)


def test_loops_inside_of_loops_multiply():
    found = loops(
        assemble(
            """
            tiles: MOV R8, RZ
            outer: MOV R9, RZ
            inner: FADD R1, R1, R2
            VIADD R9, R9, 0x1
            ISETP.NE.AND P0, PT, R9, 0x5, PT
            @P0 BRA inner
            VIADD R8, R8, 0x1
            ISETP.NE.AND P1, PT, R8, 0x3, PT
            @P1 BRA outer
            @P2 BRA tiles
            EXIT
            """
        )
    )
    assert [(loop.depth, loop.trips) for loop in found] == [(0, None), (1, 3), (2, 5)]
    assert executed(found[0], found) == everything(found[0], found)
    assert executed(found[0], found).total() == 2 + 3 * (4 + 5 * 4)


def test_a_longer_loop_with_constant_bounds_is_not_the_one_over_tiles():
    """What is left over after the full tiles goes through a loop of its own."""
    code = assemble(
        """
        tiles: FADD R1, R1, R2
        @P1 BRA tiles
        MOV R9, RZ
        rest: FADD R1, R1, R2
        FADD R1, R1, R2
        VIADD R9, R9, 0x1
        ISETP.NE.AND P0, PT, R9, 0x5, PT
        @P0 BRA rest
        EXIT
        """
    )
    assert hot_loop(loops(code)).header == 0


def test_a_spill_is_seen():
    counted = per_pair(listing("spilled"), pairs=1)
    assert counted.kinds["local"] == 2
    assert "local" not in per_pair(listing("gaussian"), pairs=1).kinds


def test_the_work_is_in_the_inner_loop():
    """Not in the loop around it, although that has more instructions, nor in the one that takes what is left over."""
    code = assemble(
        """
        blocks: MOV R1, R2
        LDG.E R3, [R4]
        LDG.E R3, [R4]
        LDG.E R3, [R4]
        FADD R9, R9, R8
        @P3 BRA after
        tiles: FADD R5, R6, R7
        FFMA R5, R6, R7, R5
        @P0 BRA tiles
        rest: FADD R5, R6, R7
        @P1 BRA rest
        after: @P2 BRA blocks
        EXIT
        """
    )
    assert hot_loop(loops(code)).header == 6 * 16
    assert per_pair(code, pairs=1).lanes["issue"] == 3


def test_of_equal_loops_the_cheaper_one_is_hot():
    """A loop over tiles that are masked does the same arithmetic."""
    code = assemble(
        """
        masked: FADD R5, R6, R7
        FSEL R5, R5, RZ, P4
        @P0 BRA masked
        full: FADD R5, R6, R7
        @P1 BRA full
        EXIT
        """
    )
    assert hot_loop(loops(code)).header == 3 * 16


def test_a_block_far_away_that_jumps_back_is_no_loop():
    """The assembler moves rare blocks behind the end."""
    code = assemble(
        """
        FADD R1, R1, R2
        @P0 BRA rare
        back: FADD R1, R1, R2
        EXIT
        rare: FMUL R1, R1, R3
        BRA back
        self: BRA self
        """
    )
    assert loops(code) == []
    with pytest.raises(ValueError, match="no loop"):
        hot_loop([])


def test_a_loop_that_waits_does_not_count():
    counted = only(
        """
        tiles: FADD R1, R1, R2
        wait: SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR4], R3
        @!P1 BRA wait
        FADD R1, R1, R2
        @P0 BRA tiles
        EXIT
        """
    )
    assert counted.lanes == {"issue": 3, "fp32": 2}


def test_work_in_an_inner_loop_of_unknown_length_is_refused():
    with pytest.raises(ValueError, match="0x10, inside the hot loop, has no constant bounds"):
        only(
            """
            tiles: FADD R1, R1, R2
            inner: FMUL R1, R1, R2
            @P1 BRA inner
            FADD R1, R1, R2
            FADD R1, R1, R2
            @P0 BRA tiles
            EXIT
            """
        )


def test_a_hot_loop_at_another_depth_is_refused():
    """Where the constant bounds of an inner loop were not understood, that loop would seem to be the one over tiles."""
    text = (LISTINGS / "looped.sass").read_text().replace("PT, R9, 0x40, PT", "PT, R9, R30, PT")
    with pytest.raises(ValueError, match="0x180 does most, but it is 1 deep, not 0"):
        per_pair(parse(text), 1, depth=0)
    assert per_pair(listing("looped"), 1, depth=0) == per_pair(listing("looped"), 1)


@pytest.mark.parametrize("branch", ["@P0 BRA start", "BRA P0, start", "BRA.U UP0, start", "@P1 BRA !P0, start"])
def test_a_conditional_branch_may_go_on(branch):
    (loop,) = loops(assemble(f"start: FADD R1, R1, R2\n{branch}\nEXIT"))
    assert len(loop.body) == 2
    rest = loops(assemble(f"FADD R1, R1, R2\nstart: {branch}\nlater: FADD R1, R1, R2\n@P2 BRA later"))
    assert [each.header for each in rest] == [16, 32]


def test_a_far_jump_spelled_as_a_call_leaves_the_loop():
    code = assemble(
        """
        tiles: FADD R1, R1, R2
        @P0 CALL.REL.NOINC out
        @P1 BRA tiles
        CALL.REL.NOINC out
        BRA tiles
        out: STG.E [R4], R1
        EXIT
        """
    )
    (loop,) = loops(code)
    assert len(loop.path) == len(loop.body) == 3


def test_a_call_comes_back():
    code = assemble(
        """
        tiles: FADD R1, R1, R2
        @P1 BRA skip
        CALL.REL.NOINC division
        FADD R1, R1, R2
        skip: FADD R1, R1, R3
        @P0 BRA tiles
        EXIT
        division: MUFU.RCP R1, R1
        RET.REL.NODEC R4
        """
    )
    (loop,) = loops(code)
    assert [instruction.opcode for instruction in loop.body].count("FADD") == 3
    assert len(loop.path) == 4


@pytest.mark.parametrize(
    ("start", "step", "compare", "trips"),
    [
        ("MOV R9, RZ", "IADD3 R9, R9, 0x4, RZ", "ISETP.NE.AND P0, PT, R9, 0x40, PT", 16),
        ("CS2R R8, SRZ", "VIADD R9, R9, 0x1", "ISETP.NE.U32.AND P0, PT, R9, 0x20, PT", 32),
        ("HFMA2.MMA R9, -RZ, RZ, 0, 0", "IADD3 R9, P1, R9, 0x4, RZ", "ISETP.LT.AND P0, PT, R9, 0x3e, PT", 16),
        ("IMAD.MOV.U32 R9, RZ, RZ, 0x10", "VIADD R9, R9, 0xffffffff", "ISETP.NE.AND P0, PT, R9, RZ, PT", 16),
        ("MOV R9, 0x1", "IADD3 R9, R9, 0x1, RZ", "ISETP.LE.AND P0, PT, R9, 0x8, PT", 8),
        ("UMOV UR6, 0xfffff800", "UIADD3 UR6, UP0, UR6, 0x80, URZ", "ISETP.NE.U32.AND P0, PT, RZ, UR6, PT", 16),
        ("MOV R9, RZ", "IADD3 R9, R9, 0x4, RZ", "ISETP.GT.AND P0, PT, 0x3e, R9, PT", 16),
        ("MOV R9, R3", "IADD3 R9, R9, 0x4, RZ", "ISETP.NE.AND P0, PT, R9, 0x40, PT", None),
        ("MOV R9, RZ", "IADD3 R9, R9, R4, RZ", "ISETP.NE.AND P0, PT, R9, 0x40, PT", None),
        ("MOV R9, RZ", "IADD3 R9, R9, 0x4, RZ", "ISETP.NE.AND P0, PT, R9, R4, PT", None),
        ("MOV R9, RZ", "@P4 IADD3 R9, R9, 0x4, RZ\nIADD3 R9, R9, 0x4, RZ", "ISETP.NE.AND P0, PT, R9, 0x40, PT", None),
        ("MOV R9, RZ", "IADD3 R9, R9, 0x4, RZ", "ISETP.NE.AND P3, PT, R9, 0x40, PT", None),
        ("MOV R9, RZ", "VIADD R9, R9, 0x4\nISETP.NE.AND P0, PT, R9, 0x40, PT", "ISETP.NE.AND P0, PT, R9, R4, PT", None),
    ],
)
def test_constant_bounds(start, step, compare, trips):
    """The last two have comparisons with constants that the branch does not depend on."""
    (loop,) = loops(assemble(f"{start}\nstart: FADD R1, R1, R2\n{step}\n{compare}\n@P0 BRA start\nEXIT"))
    assert loop.trips == trips


def test_constant_bounds_compared_before_the_step():
    body = "ISETP.LT.AND P0, PT, R9, 0x3c, PT\nIADD3 R9, R9, 0x4, RZ\n@P0 BRA start"
    (loop,) = loops(assemble(f"MOV R9, RZ\nstart: FADD R1, R1, R2\n{body}"))
    assert loop.trips == 16


def test_constant_bounds_through_other_predicates():
    """A uniform comparison of 64 bits, in two halves, copied to the predicate of the branch."""
    (loop,) = loops(
        assemble(
            """
            UMOV UR4, URZ
            UMOV UR5, URZ
            start: UIADD3 UR4, UP0, UR4, 0x40, URZ
            UIADD3.X UR5, URZ, UR5, URZ, UP0, !UPT
            UISETP.NE.U32.AND UP0, UPT, UR4, 0x1000, UPT
            UISETP.NE.U32.AND.EX UP0, UPT, UR5, URZ, UPT, UP0
            PLOP3.LUT P1, PT, PT, PT, UP0, 0x80, 0x0
            @P1 BRA start
            """
        )
    )
    assert loop.trips == 64


# --- with NVIDIA's tools --------------------------------------------------------------------------------


def test_what_a_kernel_occupies_is_read_from_the_tool(monkeypatch):
    printed = "Function spilled:\n  REG:11 STACK:64 SHARED:1024 LOCAL:8 CONSTANT[0]:548 TEXTURE:0"
    monkeypatch.setattr(sass, "_cuobjdump", lambda option, cubin: printed)
    assert usage(b"") == Usage(registers=11, spilled=72, shared=1024)
