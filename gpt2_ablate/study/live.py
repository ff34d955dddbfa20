"""A study as one watches it: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live as RichLive
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gpt2_ablate.study.plan import Plan, Run

LINE_EVERY = 20.0  # seconds between plain lines about a run in progress


@dataclass
class _Row:
    name: str
    seed: int
    steps: int
    step: int = 0
    trained: int = 0  # steps since this command began: what a resumed run did before is no measure of today's speed
    last_line: float = 0.0
    state: str = "waiting"
    loss: float | None = None
    tokens_per_second: float = 0.0
    rate: str = ""  # of learning, where the study tries several

    @property
    def title(self) -> str:
        return f"{self.name}, seed {self.seed}" + (f", rate {self.rate}" if self.rate else "")


class Live:
    """Use as a context manager around a study; call its methods as things happen."""

    def __init__(self, plan: Plan, console: Console | None = None):
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.rows = [_row(run) for run in [*plan.runs, *plan.tuning]]
        tuned = {run.variant for run in plan.tuning}
        later = [_row(run) for run in plan.runs if run.variant in tuned]  # at the best rates, which are not known yet
        for row in later:
            row.rate = "best"
        self.rows += later
        self.later, self.rates = len(later), bool(plan.tuning)
        self.title = f"{plan.preset}: {plan.title}"
        self.status = ""
        self.fresh = self.console.is_terminal
        # Refreshed by hand: a thread of its own would make starting children unsafe.
        self.screen = RichLive(console=self.console, auto_refresh=False, transient=True) if self.fresh else None
        self.began: float | None = None  # when the first run did

    def __enter__(self) -> Live:
        if self.screen:
            self.screen.start()
        else:
            self.say(self.title)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.screen:
            self.screen.stop()

    def say(self, text: str, style: str | None = None) -> None:
        """One thing worth a line of its own."""
        self.console.print(text, style=style, markup=False)  # a path or an error may hold brackets

    def warn(self, text: str) -> None:
        """The same of something that is wrong, but stops nothing."""
        self.say(text, style="yellow")

    def begin(self, finished: list[bool], first: int = 0) -> None:
        """Which runs, from this number on, are already done."""
        for row, done in zip(self.rows[first:], finished, strict=False):
            if done:
                row.state, row.step = "kept", row.steps
        kept = sum(finished)
        then = f"; then {self.later} at the best learning rates" if self.later else ""
        self.say(f"{len(finished) - kept} runs to do" + (f", {kept} kept from before" if kept else "") + then)
        self.tick()

    def at_best_rates(self, runs: list[Run]) -> int:
        """The rates are chosen, and these runs follow; returns the number of the first."""
        del self.rows[len(self.rows) - self.later :]
        first, self.later = len(self.rows), 0
        self.rows += [_row(run) for run in runs]
        chosen = {row.name: row.rate for row in self.rows[first:]}
        self.say("Best learning rates: " + (", ".join(f"{name} {rate}" for name, rate in chosen.items()) or "none found") + ".")
        return first

    def start(self, n: int) -> None:
        row = self.rows[n]
        row.state, row.step, row.last_line = "running", 0, time.monotonic()
        self.began = self.began or row.last_line
        self._line(n, "started")
        self.tick()

    def news(self, n: int, news: dict) -> None:
        """What `Progress` and `train_run` tell."""
        row = self.rows[n]
        if "warning" in news:
            self.warn(news["warning"])
            return
        if "phase" in news:
            row.state = news["phase"]
        else:
            row.trained += news["step"] - row.step if row.step else 1
            row.step, row.loss = news["step"], news["loss"] if news["loss"] is not None else row.loss
            row.tokens_per_second = news["tokens_per_second"] or row.tokens_per_second
        if time.monotonic() - row.last_line > LINE_EVERY:
            row.last_line = time.monotonic()
            loss = "" if row.loss is None else f", loss {row.loss:.3f}"
            speed = "" if not row.tokens_per_second else f", {row.tokens_per_second:,.0f} tokens/s"
            self._line(n, f"step {row.step}/{row.steps}{loss}{speed}")
        self.tick()

    def finish(self, n: int, loss: float) -> None:
        row = self.rows[n]
        row.state, row.loss, row.step = "finished", loss, row.steps
        self._line(n, f"finished, validation loss {loss:.4f}")
        self.tick()

    def fail(self, n: int, why: str) -> None:
        row = self.rows[n]
        row.state, row.step = "failed", row.steps
        self.say(f"{row.title}: failed: {why}", style="red")
        self.tick()

    def measuring(self, what: str) -> None:
        self.status = f"measuring {what}"
        self.tick()

    def tick(self) -> None:
        """Draw again."""
        if self.screen:
            self.screen.update(self._picture(), refresh=True)

    def _line(self, n: int, text: str) -> None:
        """About a run, where there is no screen."""
        if not self.screen:
            self.say(f"[{n + 1}/{len(self.rows)}] {self.rows[n].title}: {text}{self._left()}")

    def _left(self) -> str:
        """From the average of all steps trained since this command began, scoring included."""
        trained = sum(row.trained for row in self.rows)
        if self.began is None or trained < 5:
            return ""
        left = sum(row.steps - row.step for row in self.rows if row.state in ("waiting", "running"))
        return f", about {_duration(left * (time.monotonic() - self.began) / trained)} left"

    def _picture(self) -> Group:
        table = Table(title=self.title, title_justify="left", box=None, padding=(0, 2, 0, 0))
        rates = [("rate", "right")] if self.rates else []
        for name, justify in (("variant", "left"), ("seed", "right"), *rates, ("", "left"), ("step", "right"), ("loss", "right"),
                              ("tokens/s", "right"), ("state", "left")):  # fmt: skip
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        for row in self.rows:
            style = {"failed": "red", "running": "bold", "scoring": "bold", "waiting": "dim", "kept": "green"}.get(
                row.state, "green"
            )
            rate = [row.rate] if self.rates else []
            table.add_row(
                row.name, str(row.seed), *rate, ProgressBar(row.steps, row.step, width=20), f"{row.step}/{row.steps}",
                "" if row.loss is None else f"{row.loss:.3f}",
                f"{row.tokens_per_second:,.0f}" if row.tokens_per_second else "", row.state, style=style,
            )  # fmt: skip
        done = sum(row.state in ("finished", "kept", "failed") for row in self.rows)
        foot = f"{done}/{len(self.rows)} runs done{self._left()}   {self.status}"
        return Group(table, Text(foot))


def _row(run: Run) -> _Row:
    rate = run.config.get("model", {}).get("learning_rate")
    return _Row(run.variant, run.seed, run.max_steps, rate="" if run.stage == "common" else str(rate or "default"))


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{round(seconds)} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
