"""A study as one watches it: plain lines where they are read later, a table where they are seen."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from gpt2_ablate.study import live as live_room
from gpt2_ablate.study.live import Live
from gpt2_ablate.study.plan import Plan, Run


def plan(variants=("baseline", "rope", "gqa"), steps=100):
    runs = [Run("tiny", name, 0, {"trainer": {"max_steps": steps}}) for name in variants]
    return Plan("tiny", "A tiny study", runs)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(live_room, "time", clock)
    return clock


def console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, highlight=False, soft_wrap=not terminal, width=100)


def step(n, loss=6.0, speed=4000.0):
    return {"step": n, "steps": 100, "loss": loss, "tokens_per_second": speed}


def watch(terminal, clock, seconds_per_step=1.0, finished=(False, False, False)):
    """Train the first run, half of the second; returns what was printed and the Live."""
    screen = console(terminal)
    with Live(plan(), screen) as live:
        live.begin(list(finished))
        live.start(0)
        for n in range(1, 101):
            clock.now += seconds_per_step
            live.news(0, step(n))
        live.news(0, {"phase": "scoring"})
        live.finish(0, 5.4321)
        live.start(1)
        for n in range(1, 51):
            clock.now += seconds_per_step
            live.news(1, step(n, loss=5.9))
    return screen.file.getvalue(), live


class TestPlainLines:
    def test_no_escape_codes_and_no_long_lines_of_blanks(self, clock):
        text, _ = watch(False, clock)
        assert "\x1b" not in text and "\r" not in text
        assert all(line == line.rstrip() for line in text.splitlines())

    def test_say_what_begins_goes_on_and_ends(self, clock):
        text, _ = watch(False, clock)
        assert "A tiny study" in text and "3 runs to do" in text
        assert "[1/3] baseline, seed 0: started" in text and "[2/3] rope, seed 0: started" in text
        assert "baseline, seed 0: finished, validation loss 5.4321" in text
        assert re.search(r"rope, seed 0: step \d+/100, loss 5\.900, 4,000 tokens/s", text)

    def test_come_now_and_then_and_not_at_every_step(self, clock):
        text, _ = watch(False, clock)
        assert 5 <= len(text.splitlines()) <= 20

    def test_tell_the_time_left(self, clock):
        """100 steps of a second each behind, 200 ahead."""
        text, _ = watch(False, clock)
        assert "about 3 min left" in next(line for line in text.splitlines() if "rope, seed 0: started" in line)
        last = text.splitlines()[-1]
        steps_left = 200 - int(re.search(r"step (\d+)/", last)[1])
        assert f"about {round(steps_left / 60)} min left" in last

    def test_runs_that_are_kept_are_counted_and_take_no_time(self, clock):
        text, _ = watch(False, clock, finished=(False, False, True))
        assert "2 runs to do, 1 kept from before" in text
        assert "about 2 min left" in next(line for line in text.splitlines() if "rope, seed 0: started" in line)

    def test_a_resumed_run_is_not_taken_for_a_fast_one(self, clock):
        """90 of 100 steps were done yesterday; 10 in 10 s today leave 200 s, not 20."""
        screen = console(False)
        with Live(plan(), screen) as live:
            live.begin([False, False, False])
            live.start(0)
            for n in range(91, 101):
                clock.now += 1.0
                live.news(0, step(n))
            live.finish(0, 5.0)
        assert "about 3 min left" in screen.file.getvalue().splitlines()[-1]

    def test_runs_side_by_side_share_the_time(self, clock):
        """Two runs at a time, a step of each a second: 100 of 300 steps after 50 s leave 100 s."""
        screen = console(False)
        with Live(plan(), screen) as live:
            live.begin([False, False, False])
            live.start(0)
            live.start(1)
            for n in range(1, 51):
                clock.now += 1.0
                live.news(0, step(n))
                live.news(1, step(n))
            live.start(2)
        assert "[3/3] gqa, seed 0: started, about 2 min left" in screen.file.getvalue().splitlines()[-1]
        for name in ("baseline", "rope"):
            assert len(re.findall(rf"{name}, seed 0: step", screen.file.getvalue())) == 2


class TestTable:
    def test_shows_all_variants_and_how_far_they_are(self, clock):
        text, live = watch(True, clock)
        assert "\x1b" in text
        for name in ("baseline", "rope", "gqa"):
            assert name in text
        for words in ("finished", "running", "waiting", "50/100", "5.432", "1/3 runs done", "about 3 min left", "4,000"):
            assert words in text, words

    def test_a_failure_stays_on_the_screen(self, clock):
        screen = console(True)
        with Live(plan(), screen) as live:
            live.begin([True, False, False])
            live.start(1)
            live.fail(1, "killed by SIGKILL")
        text = screen.file.getvalue()
        assert "rope, seed 0: failed: killed by SIGKILL" in text and "kept" in text and "2/3 runs done" in text

    def test_what_is_measured_is_shown(self, clock):
        screen = console(True)
        with Live(plan(), screen) as live:
            live.measuring("training speed, round 3/13")
        assert "training speed, round 3/13" in screen.file.getvalue()

    def test_the_terminal_is_put_back_when_the_study_is_stopped(self, clock):
        screen = console(True)
        with pytest.raises(KeyboardInterrupt), Live(plan(), screen):
            raise KeyboardInterrupt
        shown, hidden = (screen.file.getvalue().rfind(f"\x1b[?25{c}") for c in "hl")
        assert shown > hidden >= 0  # the cursor


class TestLearningRates:
    """Two variants, one of them at two rates, which a comparison at its best rate follows: 2 + 2 + 1 runs."""

    @staticmethod
    def runs(stage, *rates):
        return [
            Run("tiny", "rope", 0, {"trainer": {"max_steps": 100}, "model": {"learning_rate": r}}, stage=stage) for r in rates
        ]

    def watch(self, terminal, clock):
        """Both stages, a second a step."""
        screen = console(terminal)
        with Live(replace(plan(("rope", "fast")), tuning=self.runs("tuning", 1e-3, 2e-3)), screen) as live:
            live.begin([True, True, False, False])
            for n in (2, 3):
                live.start(n)
                for done in range(1, 101):
                    clock.now += 1.0
                    live.news(n, step(done))
                live.finish(n, 5.0)
            runs = self.runs("best", 1.3e-3)
            first = live.at_best_rates(runs)
            live.begin([False], first)
            live.start(first)
        return screen.file.getvalue()

    def test_the_time_left_counts_what_follows(self, clock):
        text = self.watch(False, clock)
        assert "2 runs to do, 2 kept from before; then 1 at the best learning rates" in text
        assert "[3/5] rope, seed 0, rate 0.001: finished, validation loss 5.0000, about 3 min left" in text
        assert "Best learning rates: rope 0.0013." in text
        assert "[5/5] rope, seed 0, rate 0.0013: started, about 2 min left" in text

    def test_the_table_has_a_column_for_them_where_there_are_some(self, clock):
        text = self.watch(True, clock)
        assert "rate" in text and "0.001" in text and "best" in text and "0.0013" in text
        assert "rate" not in watch(True, clock)[0]


class TestOddNews:
    @pytest.mark.parametrize("terminal", [False, True], ids=["plain", "table"])
    @pytest.mark.parametrize("words", ["shape [rows, columns]", "in [/tmp/x]", "[bold]", "[red", "] [", "\\[x]"])
    def test_brackets_are_printed_as_they_are(self, clock, terminal, words):
        """Paths and torch's messages hold brackets; they are no markup."""
        screen = console(terminal)
        with Live(plan(), screen) as live:
            live.begin([False, False, False])
            live.start(0)
            live.news(0, {"warning": f"warned of {words}"})
            live.fail(0, f"failed {words}")
            live.say(f"said {words}")
        for said in (f"warned of {words}", f"failed {words}", f"said {words}"):
            assert said in screen.file.getvalue()

    def test_a_loss_that_is_not_there_yet(self, clock):
        screen = console(False)
        with Live(plan(), screen) as live:
            live.begin([False, False, False])
            live.start(0)
            clock.now += 60
            live.news(0, {"step": 1, "steps": 100, "loss": None, "tokens_per_second": 0.0})
        assert "baseline, seed 0: step 1/100" in screen.file.getvalue()
