"""`quantmm tune`: search parameters that are faster than the default ones."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from ..bench.models import MODELS
from ..errors import TargetError, TuningError
from ..files import check_writable
from ..formats.spec import MatmulSpec
from ..models.open import open_model
from ..runtime import devices
from ..schedules import records
from .models import Shape, saved_per_token, shapes_of
from .options import Whole, format_options, make_spec, rpc_options, target_option, threads_option


@click.command("tune")
@click.option("--m", type=Whole(), default="1,16,512", show_default=True, help="Rows of X.")
@click.option("--n", type=Whole(), help="Rows of W.")
@click.option("--k", type=Whole(), help="Columns of X and W.")
@click.option(
    "--model",
    help=f"The layers of a model: its n and k. One of {', '.join(MODELS)}; or a file or folder, "
    "whose quantized layers decide the options of formats too.",
)
@format_options
@target_option
@threads_option
@rpc_options
@click.option("--trials", type=click.IntRange(1), default=64, show_default=True, help="For each M.")
@click.option("--time-limit", type=float, help="Seconds after which no further trial begins.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Of the search and the data.",
)
@click.option("--log", type=click.Path(), help="Folder of the log; by default the user's own.")
@click.option(
    "--prepare",
    "prepare_folder",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Build a GPU's candidates into a FOLDER, and measure nothing.",
)
@click.option(
    "--from",
    "from_folder",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Measure what --prepare built; this machine needs a GPU, and no compiler.",
)
@click.option("--plot", type=click.Path(), help="Draw the tuning curves into this file.")
def tune_command(
    m: list[int],
    n: list[int] | None,
    k: list[int] | None,
    model: str | None,
    target: str,
    threads: int | None,
    rpc: str | None,
    key: str | None,
    trials: int,
    time_limit: float | None,
    seed: int,
    log: str | None,
    prepare_folder: Path | None,
    from_folder: Path | None,
    plot: str | None,
    **formats: Any,
) -> None:
    """Search parameters for this machine, and keep what is faster than the default in a log.

    `compile` uses it from then on. Every trial is written down when it was measured: the same
    command goes on where a run was ended, and several may share a log. For M up to 16 the weights
    come from memory. With --rpc, all free servers under the key measure, and their machines' kind
    is what the log is for.
    """
    if time_limit is not None and time_limit <= 0:
        raise click.UsageError(f"--time-limit is {time_limit}; expected more than 0 seconds")
    if from_folder is not None:
        if prepare_folder is not None or n or k or model is not None:
            raise click.UsageError("--from has its own shapes; give it --time-limit and --log")
        measure_prepared(from_folder, time_limit, log)
        return
    if prepare_folder is not None:
        specs = [shape.spec for shape in shapes(model, n, k, formats)]
        prepare_for(prepare_folder, target, m, specs, trials, seed)
        return
    from ..tuning.plot import check_suffix, require_matplotlib
    from ..tuning.plot import plot as draw
    from ..tuning.progress import Display
    from ..tuning.rpc import session_for
    from ..tuning.run import tune

    if plot is not None:
        require_matplotlib()
        check_suffix(Path(plot))
        check_writable(Path(plot), TuningError)
    found = shapes(model, n, k, formats)
    specs = [shape.spec for shape in found]
    begun, tunings = time.monotonic(), []
    display = Display(trials * len(specs) * len(set(m)))
    try:
        with session_for(rpc, key) as session, display:
            if rpc is not None:
                names = ", ".join(board.name for board in session.boards)
                click.echo(f"measuring on {names}", err=True)
            for spec in specs:
                left = None if time_limit is None else time_limit - (time.monotonic() - begun)
                if left is not None and left <= 0:
                    break
                tunings.append(
                    tune(
                        spec,
                        target,
                        m,
                        trials=trials,
                        time_limit=left,
                        seed=seed,
                        threads=threads,
                        log=log,
                        watch=display,
                        session=session,
                    )
                )
                display.finished(tunings[-1])
    except KeyboardInterrupt:
        kept = "1 trial is" if display.trials == 1 else f"{display.trials} trials are"
        where = log or records.default_folder()
        raise click.Abort(
            f"interrupted: {kept} kept in {where}; the same command goes on from there"
        ) from None
    if plot is not None:
        draw(tunings, Path(plot))
    for tuning in tunings:
        click.echo(tuning.record or f"{tuning.spec.n} x {tuning.spec.k}: the defaults stay")
    if model is not None and model not in MODELS:
        for line in saved_per_token(model, tunings, found):
            click.echo(line)


def prepare_for(
    folder: Path,
    target: str,
    m: list[int],
    specs: list[MatmulSpec],
    trials: int,
    seed: int,
) -> None:
    """Build the candidates of some shapes into a folder."""
    from ..tuning.prepared import prepare

    row = devices.find(target)
    if row.device != "cuda":
        raise TargetError(f"target {row.name} is a CPU's; --prepare is for those of GPUs")
    prepare(specs, row, m, folder, trials=trials, seed=seed, say=click.echo)
    click.echo(f"{folder}: go on with `quantmm tune --from` where the GPU is")


def measure_prepared(folder: Path, time_limit: float | None, log: str | None) -> None:
    """Measure what a folder has."""
    from ..tuning.prepared import Prepared
    from ..tuning.progress import Display
    from ..tuning.run import tune

    begun = time.monotonic()
    session = Prepared(folder)
    with session:
        trials = session.trials * sum(map(len, session.problems.values()))
        with Display(trials) as display:
            for spec, m in session.problems.items():
                left = None if time_limit is None else time_limit - (time.monotonic() - begun)
                if left is not None and left <= 0:
                    break
                options = {"trials": session.trials, "seed": session.seed, "time_limit": left}
                tuning = tune(
                    spec, session.target, m, log=log, watch=display, session=session, **options
                )
                display.finished(tuning)
                click.echo(tuning.record or f"{spec.n} x {spec.k}: the defaults stay")


def shapes(
    model: str | None, n: list[int] | None, k: list[int] | None, formats: dict[str, Any]
) -> list[Shape]:
    """The specs that are asked for."""
    if model is not None and (n or k):
        raise click.UsageError("give --model, or --n and --k")
    if model is not None and model not in MODELS:
        if not Path(model).exists():
            raise click.UsageError(
                f"no model {model!r}; expected a file, a folder or one of {', '.join(MODELS)}"
            )
        return shapes_of(open_model(model), formats)
    if model is not None:
        pairs = [(layer.n, layer.k) for layer in MODELS[model]]
    elif n and k:
        pairs = [(rows, columns) for rows in n for columns in k]
    else:
        raise click.UsageError("give --n and --k, or --model")
    return [Shape(make_spec(rows, columns, formats), ("",)) for rows, columns in pairs]
