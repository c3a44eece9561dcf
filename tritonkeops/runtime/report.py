"""What tuning compared: a table in Markdown, and a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tritonkeops.runtime.tuning import Task, Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Report:
    """The trials of a task, of which the first is the default, and the one that was chosen."""

    task: Task
    trials: Sequence[Trial]
    chosen: Trial

    @property
    def title(self) -> str:
        task = self.task
        sizes = " x ".join(map(str, (*task.layout.batch, task.layout.rows, task.layout.cols)))
        return f"{task.program.reduction}, {task.target.dtype}, {sizes}, {task.where}"

    def label(self, trial: Trial) -> str:
        """How a schedule differs from the default; blocks of sums follow tiles."""
        default, own = asdict(self.trials[0].schedule), asdict(trial.schedule)
        changes = [f"{name}={own[name]}" for name in own if own[name] != default[name] and name != "block_sum"]
        return ", ".join(changes) or "default"

    def rate(self, trial: Trial) -> float:
        """Measured pairs per second; 0 where nothing was measured."""
        layout = self.task.layout
        pairs = math.prod(layout.batch) * layout.rows * layout.cols
        return pairs / trial.seconds if trial.seconds else 0.0


def predicted(trial: Trial) -> float:
    """Predicted pairs per second; 0 where there is no prediction."""
    return trial.prediction.pairs_per_second if trial.prediction else 0.0


def rejected(trial: Trial) -> str:
    """Why a trial is out; "" if it is not."""
    if not trial.prediction or trial.prediction.fits:
        return trial.failure
    return "spills" if trial.prediction.usage.spilled else "does not fit"


# The table ------------------------------------------------------------------------------------------------------------


def table(report: Report) -> str:
    """One line for each trial; columns that nothing is known for are left out."""
    rows = [[_cell(report, trial, name) for name in _COLUMNS] for trial in report.trials]
    kept = [n for n in range(len(_COLUMNS)) if any(row[n] for row in rows)]
    cells = [[row[n] for n in kept] for row in ([*_COLUMNS], *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [_line(row, widths) for row in (cells[0], rule, *cells[1:])]
    return "\n".join([report.title, f"default: {report.trials[0].schedule}", "", *lines])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]
    return f"| {' | '.join(padded)} |"


def _cell(report: Report, trial: Trial, name: str) -> str:
    return _COLUMNS[name](report, trial)


def _of_prediction(form: Callable[..., str]) -> Callable[[Report, Trial], str]:
    return lambda report, trial: form(trial.prediction) if trial.prediction else ""


_COLUMNS: dict[str, Callable[[Report, Trial], str]] = {
    "schedule": lambda report, trial: report.label(trial),
    "instructions per pair": _of_prediction(lambda p: f"{p.counted.lanes['issue']:.3g}"),
    "registers": _of_prediction(lambda p: f"{p.usage.registers}"),
    "spilled": _of_prediction(lambda p: f"{p.usage.spilled or ''}"),
    "occupancy": _of_prediction(lambda p: f"{p.occupancy:.0%}"),
    "bound by": _of_prediction(lambda p: str(p.bound_by)),
    "predicted G pairs/s": lambda report, trial: f"{predicted(trial) / 1e9:.4g}" if predicted(trial) else "",
    "ms": lambda report, trial: f"{1e3 * trial.seconds:.4g}" if trial.seconds else "",
    "G pairs/s": lambda report, trial: f"{report.rate(trial) / 1e9:.4g}" if trial.seconds else "",
    "": lambda report, trial: "chosen" if trial is report.chosen else rejected(trial),
}


# The picture ----------------------------------------------------------------------------------------------------------


def check_matplotlib() -> None:
    """Raises ValueError where there is none."""
    if find_spec("matplotlib") is None:
        raise ValueError("pictures need matplotlib: pip install matplotlib")


def picture(reports: Sequence[Report], path: Path) -> None:
    """Bars of predicted and measured pairs per second, the best at the top of each report."""
    check_matplotlib()
    from matplotlib.figure import Figure  # an optional dependency

    lines = [max(4, len(report.trials)) for report in reports]
    figure = Figure(figsize=(10, sum(1.5 + 0.28 * n for n in lines)), layout="constrained")
    plots = figure.subplots(len(reports), squeeze=False, height_ratios=lines)[:, 0]
    for report, axes in zip(reports, plots, strict=True):
        _bars(report, axes)
    figure.savefig(path)


def _bars(report: Report, axes: Axes) -> None:
    trials = sorted(report.trials, key=lambda trial: (report.rate(trial), predicted(trial)))
    rates = {"predicted": [predicted(trial) / 1e9 for trial in trials]}
    rates["measured"] = [report.rate(trial) / 1e9 for trial in trials]
    shown = {name: values for name, values in rates.items() if any(values)}
    for n, (name, values) in enumerate(shown.items()):
        places = [place + 0.2 * (2 * n - len(shown) + 1) for place in range(len(trials))]
        axes.barh(places, values, 0.8 / len(shown), label=name, color={"predicted": "0.7"}.get(name, "tab:blue"))
    labels = [f"{report.label(trial)}{f' ({why})' if (why := rejected(trial)) else ''}" for trial in trials]
    axes.set_yticks(range(len(trials)), labels)
    for tick, trial in zip(axes.get_yticklabels(), trials, strict=True):
        tick.set_color("tab:red" if trial is report.chosen else "black")
        tick.set_fontweight("bold" if trial is report.trials[0] else "normal")
    axes.set_xlabel("G pairs/s; red: chosen, bold: default")
    axes.set_title(report.title, fontsize="medium")
    axes.legend(loc="lower right")
