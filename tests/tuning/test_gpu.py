"""Tuning for a GPU, on an emulated card: the same search, race, log and records as for CPUs."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import emulated_card
import pytest
import quantmm as qmm
import tuning_gpu
from quantmm.bench import cuda_limits
from quantmm.bench.roofline import Limits
from quantmm.schedules import cuda_records, records
from quantmm.schedules.cpu.space import of_trace
from quantmm.schedules.cuda.plan import plan_for
from quantmm.schedules.cuda.program import CudaTile
from quantmm.tuning import keeping, on_cuda, prepared, stage, verdict
from quantmm.tuning.choice import Choice
from quantmm.tuning.search import Search
from quantmm.tuning.stage import Session

ROW = qmm.targets.find(tuning_gpu.TARGET)
SPEC = qmm.MatmulSpec(n=32, k=256, activation_scale="tensor")
M = 3
TESTS = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def session():
    """Builders that all tests share, and a bench with an emulated card."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verdict, "FINAL_ROUNDS", 3)
        patch.setattr(verdict, "STEPS", (4,))
        paths = [str(TESTS), str(TESTS / "emulators"), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        patch.setattr(stage, "BUILDERS", 1)
        patch.setattr(cuda_limits, "measure", lambda *_: Limits(1, 1000.0, 10.0, 10.0))
        emulated_card.install(patch, ROW.name)
        boards = [stage.this_machine("tuning_gpu:Bench")]
        with Session("tuning_gpu:Builder", boards, build_seconds=60) as session:
            yield session


def tile(**other):
    return CudaTile(**{"rows": 4, "blocks": 1, "warps": (1, 1, 4), **other})


@pytest.fixture
def propose(monkeypatch, session):
    """Let the search propose these choices."""

    def these(*choices):
        class Fixed(Search):
            def propose(self):
                return iter([(each, None) for each in choices if each not in self._known])

        def search(problem, batch):
            return Fixed(problem.spec, problem.row, problem.m, problem.seed, batch)

        monkeypatch.setattr(session, "search", search)

    return these


def tune(session, log, **options):
    return qmm.tune(
        SPEC, ROW.name, **{"m": [M], "trials": 4, "log": log, **options}, session=session
    )


def test_a_run_and_what_compiling_makes_of_it(session, tmp_path):
    seen = []
    tuning = tune(session, tmp_path, trials=3, watch=seen.append)
    (outcome,) = tuning.outcomes
    assert tuning.target == ROW.name
    assert outcome.choice is not None, "the default is made slow"
    assert len(outcome.times) == 3
    assert seen[-1].best < seen[-1].default
    assert keeping.check(tmp_path) == []
    (record,) = keeping.kernels(tmp_path)
    assert record.header["gpu"] == "emulated"
    assert record.why_not_here() is None
    assert record.measured[0]["m"] == M

    kernel = qmm.compile(SPEC, "cuda", cache=False, log=tmp_path)
    name = f"{outcome.choice.strategy}_{outcome.choice.parameters.rows}"
    row, far = kernel.report([M, 4000])
    assert row["function"].startswith(name)
    assert row["function"].endswith(f"_m{M}")
    assert row["record"] == tuning.record
    assert far["record"] is None
    assert [function.first_m <= M for function in kernel.info.variants if function.record] == [True]
    again = qmm.compile(qmm.MatmulSpec(**{**vars(SPEC), "m": M}), "cuda", cache=False, log=tmp_path)
    assert [each.name for each in again.info.variants] == [row["function"]]
    assert qmm.compile(SPEC, "cuda", cache=False, log=False).report([M])[0]["record"] is None
    # The same again tries nothing again.
    before = (record.database / records.TRIALS).read_bytes()
    tune(session, tmp_path, trials=3)
    assert (record.database / records.TRIALS).read_bytes() == before


def test_what_fails_costs_its_process(session, tmp_path, propose, monkeypatch):
    monkeypatch.setattr(stage, "RUN_SECONDS", 6.0)
    bands = [
        tuning_gpu.IS_WRONG,
        tuning_gpu.CRASHES,
        tuning_gpu.HANGS,
        tuning_gpu.LOSES_THE_GPU,
        BAND := 64,
    ]
    propose(*[Choice("gemv", None, tile(band=band)) for band in bands])
    tuning = tune(session, tmp_path, trials=6)
    (outcome,) = tuning.outcomes
    assert outcome.choice is not None
    assert outcome.choice.parameters.band == BAND
    (database,) = records.databases(tmp_path)
    lines = (database / records.FAILURES).read_text().splitlines()
    failures = {each["choice"]["band"]: each["reason"] for each in map(json.loads, lines)}
    assert failures.keys() == {*bands[:-1]}
    assert failures[tuning_gpu.IS_WRONG] == "wrong for 1 rows: all of it"
    assert "SIGABRT" in failures[tuning_gpu.CRASHES]
    assert failures[tuning_gpu.HANGS] == "not done after 6 s"
    lost = failures[tuning_gpu.LOSES_THE_GPU]
    assert "exit code 1: the GPU cannot be used any more: cuGraphLaunch: CUDA_ERR" in lost


@pytest.mark.parametrize(
    ("target", "fields"),
    [
        ("cuda-sm75-dp4a", {}),
        ("cuda-sm75", {"gated": True}),
        ("cuda-sm120", {"weight": "int4", "group_size": 128}),
    ],
)
def test_every_space_has_the_default_and_code(target, fields):
    row = qmm.targets.find(target)
    spec = qmm.MatmulSpec(n=768, k=768, **fields)
    for m in (16, 2048):
        search = Search(spec, row, m, 0, 4)
        plan = plan_for(spec, row)
        default = on_cuda.default_choice(plan, m)
        assert on_cuda.refusal(plan, default) is None
        assert Choice.of(default.decisions()) == default
        assert of_trace(search.trace(default)) == default.decisions()
        for choice, _ in search.propose():
            assert on_cuda.refusal(plan, choice) is None
            assert choice.strategy in on_cuda.space(plan, m)


@pytest.mark.parametrize(
    ("strategy", "fields", "message"),
    [
        ("gemv", {"warps": (1, 1, 3)}, "3 warps do not share 4 parts of K out evenly"),
        ("gemv", {"stages": 2}, "a gemv has no pipeline, and warps over K alone"),
        ("gemv", {"blocks": 0}, "blocks=0; expected a whole number of at least 1"),
        ("gemv", {"warps": (1, 1, 32)}, "32 warps; expected at most 16"),
        ("splitk", {"rows": 16, "blocks": 4}, "a splitk has a pipeline, and two warps or more"),
        ("splitk", {"rows": 16, "blocks": 1, "stages": 2}, "a warp has one block of columns"),
        ("splitk", {"rows": 16, "blocks": 4, "steps": 3, "stages": 2}, "do not share rounds of 3"),
        ("mma", {"rows": 24, "warps": (1, 1, 1), "stages": 2}, "do not share 24 rows out in frag"),
        ("mma", {"rows": 64, "blocks": 8, "warps": (1, 1, 1), "stages": 5}, "4 rounds; expected 5"),
        ("mma", {"rows": 256, "blocks": 64, "warps": (2, 2, 1), "stages": 2}, "1024 sums of a thr"),
        ("dp4a", {"rows": 16}, "cuda-sm80 has no such strategy"),
    ],
)
def test_records_whose_tiles_have_no_code(strategy, fields, message):
    plan = plan_for(SPEC, ROW)
    tuned = records.Tuned(M, strategy, tile(**fields), 0.5, 1, 4)
    line = cuda_records.as_line(plan, records.Record("", None, (tuned,)))
    with pytest.raises(qmm.errors.RecordError) as error:
        cuda_records.parsed("log:1", line, SPEC, ROW)
    assert message in str(error.value)


def test_damaged_records():
    plan = plan_for(SPEC, ROW)
    tuned = records.Tuned(M, "gemv", tile(), 0.5, 1, 4)
    line = cuda_records.as_line(plan, records.Record("", None, (tuned,)))
    assert cuda_records.parsed("log:1", line, SPEC, ROW).tuned == (tuned,)
    for before, after, message in [
        ('"ratio": 0.5', '"ratio": 1.5', "ratio=1.5; expected one between 0 and 1"),
        ('"last_m": 4', '"last_m": 2', "m=3 of 1 to 2; expected one of them"),
        ('"rows": 4', '"row": 4', "it is damaged"),
        ("}", "", "it is damaged"),
    ]:
        assert before in line
        with pytest.raises(qmm.errors.RecordError, match=message):
            cuda_records.parsed("log:1", line.replace(before, after), SPEC, ROW)


def test_without_a_card_or_a_compiler(session, tmp_path, monkeypatch):
    with pytest.raises(qmm.errors.TargetError, match=r"cuda-sm90 cannot run here: needs compute"):
        qmm.tune(SPEC, "cuda-sm90", log=tmp_path, session=session)
    monkeypatch.setattr(on_cuda.nvrtc, "bindings", lambda: None)
    with pytest.raises(qmm.errors.ToolError, match=r"needs NVRTC: pip install 'quantmm\[cuda\]'"):
        tune(session, tmp_path)


def test_prepared_where_the_compiler_is_and_measured_where_the_gpu_is(
    quantmm, session, tmp_path, monkeypatch
):
    monkeypatch.setattr(prepared, "Session", lambda: contextlib.nullcontext(session))
    monkeypatch.setattr(prepared, "STEPS", (4,))
    folder, log = tmp_path / "folder", tmp_path / "log"
    shape = ["--n", SPEC.n, "--k", SPEC.k, "--activation-scale", "tensor", "--m", M]
    words = ["tune", "--target", ROW.name, *shape, "--trials", 2, "--prepare", folder]
    status, out, _ = quantmm(*words)
    assert status == 0
    assert f"{M} x {SPEC.n} x {SPEC.k}: 2 candidates" in out or "3 candidates" in out
    # Where the GPU is there is no compiler.
    monkeypatch.setattr(Search, "__init__", lambda *_: pytest.fail("a search"))
    monkeypatch.setattr(session, "build", lambda *_: pytest.fail("a build"))
    monkeypatch.setattr(on_cuda.nvrtc, "compile_cuda", lambda *_, **__: pytest.fail("NVRTC"))
    made = prepared.Prepared
    monkeypatch.setattr(prepared, "Prepared", lambda path: made(path, "tuning_gpu:Bench"))
    for _ in range(2):  # the second goes on where the first was, and has nothing to do
        status, out, err = quantmm("tune", "--from", folder, "--log", log)
        assert status == 0, err
        assert str(log) in out
    (record,) = keeping.kernels(log)
    assert record.measured[0]["m"] == M
    assert keeping.check(log) == []
    (database,) = records.databases(log)
    assert len((database / records.TRIALS).read_text().splitlines()) == 2


def test_folders_that_were_not_prepared(quantmm, tmp_path):
    status, _, err = quantmm("tune", "--from", tmp_path)
    assert status == 2
    assert "No such file or directory; expected a folder of `quantmm tune --prepare`" in err
    (tmp_path / "index.json").write_text("{}")
    assert (
        "index.json is damaged; prepare the folder again" in quantmm("tune", "--from", tmp_path)[2]
    )
    (tmp_path / "index.json").write_text('{"versions": {"tvm": "0"}}')
    assert "was prepared by {'tvm': '0'}; here is" in quantmm("tune", "--from", tmp_path)[2]
    words = ["tune", "--from", tmp_path, "--n", 8, "--k", 8]
    assert "--from has its own shapes" in quantmm(*words)[2]
    words = ["tune", "--target", "generic", "--n", 8, "--k", 8, "--prepare", tmp_path]
    assert "target generic is a CPU's; --prepare is for those of GPUs" in quantmm(*words)[2]
