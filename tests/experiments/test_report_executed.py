"""What a report says that an arm's runs executed."""

import hashlib
import json

import pytest
from report_example import ARMS, config, equations_of, make_comparison
from report_reader import Page

from shearling.experiments.report.data import read
from shearling.experiments.report.executed import Executed, executed
from shearling.experiments.report.page import comparison_page

NO_PICTURES = {"loss_curves": [], "differences": [], "learning_rates": [], "diagnostics": []}


def shown(folder) -> str:
    """The text of the page."""
    found = read(folder)
    return Page(comparison_page(found, NO_PICTURES, {arm.name: executed(arm) for arm in found.arms})).text


NORM = """
from torch import nn

class Mine(nn.Module):
    def __init__(self, dim):
        super().__init__()

    def forward(self, x):
        return x / 3
"""


class TestTheEquationsOfAnArm:
    """Recorded by its runs; worked out today only where that is sure to be the same."""

    @pytest.fixture
    def folder(self, tmp_path):
        return make_comparison(tmp_path, dict(list(ARMS.items())[:2]), tuned=False)

    def runs_of(self, folder, arm="postln"):
        return sorted((folder / "runs" / arm).iterdir())

    def of(self, folder, arm="postln"):
        return executed(next(each for each in read(folder).arms if each.name == arm))

    def test_are_those_that_its_runs_recorded_not_todays(self, folder):
        for run in self.runs_of(folder):
            (run / "equations.txt").write_text("what was once the code\n")
        assert self.of(folder) == [Executed("what was once the code")]
        assert "postln what was once the code" in shown(folder)

    def test_are_all_shown_where_the_seeds_disagree(self, folder):
        _, second, third = self.runs_of(folder)
        (second / "equations.txt").write_text("something else\n")
        (third / "equations.txt").unlink()
        recorded = equations_of("postln").rstrip("\n")
        assert self.of(folder) == [
            Executed(recorded, "seed-0; the runs of this arm disagree"),
            Executed("something else", "seed-1; the runs of this arm disagree"),
            Executed("", "seed-2: not recorded"),
        ]
        text = shown(folder)
        assert "postln seed-1; the runs of this arm disagree something else postln seed-2: not recorded" in text

    def test_are_told_of_those_seeds_that_recorded_them(self, folder):
        (self.runs_of(folder)[1] / "equations.txt").unlink()
        assert self.of(folder) == [Executed(equations_of("postln").rstrip("\n"), "seed-1: not recorded")]

    def test_are_worked_out_today_and_say_so_where_no_run_recorded_them(self, folder):
        for run in self.runs_of(folder):
            (run / "equations.txt").unlink()
        today = Executed(equations_of("postln").rstrip("\n"), "not recorded by the runs: worked out by today's code")
        assert self.of(folder) == [today]
        assert today.note in shown(folder)

    def test_are_not_recorded_where_the_users_code_has_changed(self, folder, monkeypatch):
        (folder / "my_report_norm.py").write_text(NORM)
        monkeypatch.syspath_prepend(folder)
        for run in self.runs_of(folder):
            (run / "equations.txt").unlink()
            custom = config("postln").model_dump(mode="json")
            custom["model"]["norm"] = {"kind": "my_report_norm:Mine"}
            (run / "experiment_config.yaml").write_text(json.dumps(custom))
        (entry,) = self.of(folder)
        assert entry.text == ""
        assert "the code of the model's own norm or placement is another today" in entry.note
        digest = hashlib.sha256(NORM.encode()).hexdigest()
        for run in self.runs_of(folder):
            provenance = json.loads((run / "provenance.json").read_text())
            provenance["hashes"]["code"] = digest
            (run / "provenance.json").write_text(json.dumps(provenance))
        (entry,) = self.of(folder)
        assert "x / 3" in entry.text
        assert f"hash of the user's own code none (3 runs), {digest} (3 runs)" in shown(folder)

    @pytest.mark.parametrize("code", ["class Mine(:\n", "raise RuntimeError('no')\n"], ids=["no Python", "an error"])
    def test_of_a_file_that_cannot_be_read_any_more_are_not_recorded(self, folder, monkeypatch, code):
        name = f"my_broken_norm_{len(code)}"
        (folder / f"{name}.py").write_text(code)
        monkeypatch.syspath_prepend(folder)
        for run in self.runs_of(folder):
            (run / "equations.txt").unlink()
            custom = config("postln").model_dump(mode="json")
            custom["model"]["norm"] = {"kind": f"{name}:Mine"}
            (run / "experiment_config.yaml").write_text(json.dumps(custom))
        (entry,) = self.of(folder)
        assert entry.text == ""
        assert entry.note.startswith("not recorded: ")
        assert "postln not recorded: " in shown(folder)

    def test_are_told_apart_by_what_a_short_text_leaves_out(self, folder):
        numbers = ", ".join(map(str, range(1, 31)))
        for arm, last in (("preln", "31"), ("postln", "32")):
            for run in self.runs_of(folder, arm):
                (run / "equations.txt").write_text(f"c = {numbers}, {last}\n")
        text = shown(folder)
        assert f"preln c = {numbers}, 31" in text
        assert f"postln c = {numbers}, 32" in text
