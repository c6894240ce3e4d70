"""The pictures of a report say what the figures say."""

import io
from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from PIL import Image
from report_example import ARMS, STEPS, make_comparison, write_lines

from shearling.experiments.report.charts import differences, learning_rates, loss_curves, training_curve
from shearling.experiments.report.data import Arm, Comparison, Run, read
from shearling.experiments.report.maps import diagnostics
from shearling.experiments.report.page import _figure
from shearling.experiments.report.pictures import DARK, LIGHT, Picture, look, png, scaled, svg


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    return read(make_comparison(tmp_path_factory.mktemp("comparison")))


def drawn(picture: Picture, theme=LIGHT) -> Figure:
    figure = Figure(layout="constrained")
    picture.draw(figure, theme)
    return figure


def texts(figure: Figure) -> list[str]:
    """Names in legends and above panels."""
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return legends + [axes.get_title() for axes in figure.axes]


def by_title(pictures: list[Picture], title: str) -> Picture:
    return next(picture for picture in pictures if picture.title == title)


class TestTheDifferences:
    def test_are_drawn_with_their_intervals_around_the_line_of_zero(self, comparison):
        axes = drawn(differences(comparison)[0]).axes[0]
        intervals = [tuple(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2]
        assert intervals == [(low, high) for _, (_, low, high, *_) in list(ARMS.values())[1:]] + [(0, 0)]

    def test_have_a_row_for_each_arm_but_the_baseline_first_on_top(self, comparison):
        axes = drawn(differences(comparison)[0]).axes[0]
        assert [label.get_text() for label in axes.get_yticklabels()] == ["postln", "peri_ln", "custom_norm"]
        assert axes.yaxis.get_inverted()

    def test_say_what_could_not_have_been_seen(self, comparison):
        axes = drawn(differences(comparison)[0]).axes[0]
        assert [(bar.get_x(), bar.get_width()) for bar in axes.patches] == [
            (-visible, 2 * visible) for _, (*_, visible) in list(ARMS.values())[1:]
        ]

    def test_are_told_in_the_words_for_those_who_cannot_see(self, comparison):
        assert "postln +0.0480 (+0.0310 to +0.0650)" in differences(comparison)[0].alt

    def test_are_drawn_without_what_is_not_known(self, tmp_path):
        found = read(make_comparison(tmp_path))
        for arm in found.arms[1:]:
            arm.figures["versus"] |= {"smallest_visible": None, "paired": arm.name == "postln"}
        axes = drawn(differences(found)[0]).axes[0]
        assert not axes.patches
        assert [len(line.get_xdata()) for line in axes.lines if line.get_marker() == "|"] == [3, 0, 0]


class TestTheLossCurves:
    def test_are_the_whole_run_and_its_last_third(self, comparison):
        whole, late = (drawn(picture).axes[0] for picture in loss_curves(comparison))
        horizon = STEPS * 8192 / 1e6
        assert whole.get_xlim()[0] < 0
        assert late.get_xlim()[0] == pytest.approx(horizon * 2 / 3, rel=0.02)
        assert late.get_ylim()[1] < 2.5 < 7 < whole.get_ylim()[1]

    def test_have_units_and_the_arms_names(self, comparison):
        figure = drawn(loss_curves(comparison)[0])
        assert figure.axes[0].get_xlabel() == "tokens (millions)"
        assert figure.axes[0].get_ylabel() == "validation loss (nats per token)"
        assert [text.get_text() for text in figure.legends[0].get_texts()] == list(ARMS)

    def test_mark_where_a_run_diverged(self, comparison):
        axes = drawn(loss_curves(comparison)[0]).axes[0]
        (cross,) = [line for line in axes.lines if line.get_marker() == "X"]
        assert cross.get_xdata()[0] <= STEPS / 2 * 8192 / 1e6

    def test_of_a_single_run_show_training_and_validation(self, comparison):
        figure = drawn(training_curve(comparison.arms[0].runs[0])[0])
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["training", "validation"]

    def test_are_none_where_nothing_was_recorded(self):
        assert training_curve(Run(None, "ok", [], [], {})) == []


class TestNoRunIsDroppedSilently:
    def spoiled(self, folder, *runs: tuple[int, list[dict]]):
        """A comparison of two arms; of the second, these seeds have these metrics and diagnostics instead."""
        make_comparison(folder, dict(list(ARMS.items())[:2]), tuned=False)
        for seed, lines in runs:
            for name in ("metrics", "diagnostics"):
                write_lines(folder / "runs" / "postln" / f"seed-{seed}" / f"{name}.jsonl", lines)
        return read(folder)

    def test_where_a_run_left_nothing_to_draw(self, tmp_path):
        found = self.spoiled(tmp_path, (1, []))
        for picture in [*loss_curves(found), *diagnostics(found.arms)]:
            assert "postln (2 of 3 seeds)" in texts(drawn(picture))
            assert "(2 of 3 seeds)" in picture.alt

    def test_where_no_run_of_an_arm_left_anything(self, tmp_path):
        found = self.spoiled(tmp_path, (0, []), (1, []), (2, []))
        for picture in loss_curves(found):
            assert "postln (0 of 3 seeds)" in texts(drawn(picture))
            assert "postln has no curve" in picture.alt
        for picture in diagnostics(found.arms):
            drawn(picture)
            assert picture.note == "Not drawn: postln (measured by 0 of 3 seeds)."
            assert picture.note in picture.alt
            assert picture.note in _figure(picture)

    def test_where_the_runs_have_no_tokens_and_no_step_in_common(self, tmp_path):
        late = [{"step": s, "tokens": s * 8192, "validation_loss": 3 - s / 400, "log_z": 1.0} for s in (200, 400)]
        early = [{"step": 0, "tokens": 0, "validation_loss": 7.6, "log_z": 1.0}]
        found = self.spoiled(tmp_path, (0, late), (1, late), (2, early))
        for picture in loss_curves(found):
            figure = drawn(picture)
            assert "postln has no mean, since its 3 runs have no tokens in common" in picture.alt
            ends = [line.get_xdata()[-1] for line in figure.axes[0].lines if len(line.get_xdata())]
            assert {0, 400 * 8192 / 1e6} <= {round(float(end), 6) for end in ends}
        log_z = by_title(diagnostics(found.arms), "Log Z (nats)")
        assert log_z.note == "Not drawn: postln (no step in common to its seeds)."

    def test_where_a_run_has_but_one_evaluation(self, tmp_path):
        first = [{"step": 0, "tokens": 0, "validation_loss": 7.6}]
        found = self.spoiled(tmp_path, *((seed, first) for seed in range(3)))
        only = Comparison(found.folder, found.figures, found.arms[1:])
        for picture in loss_curves(only):
            low, high = drawn(picture).axes[0].get_xlim()
            assert low < 0 < high


class TestTheLearningRates:
    def test_stand_on_a_logarithmic_axis_with_the_best_ringed(self, comparison):
        axes = drawn(learning_rates(comparison)[0]).axes[0]
        assert axes.get_xscale() == "log"
        rings = [line for line in axes.lines if line.get_markerfacecolor() == "none"]
        assert [ring.get_xdata()[ring.get_markevery()].tolist() for ring in rings] == [[2e-3]] * 4

    def test_are_ringed_where_the_arm_was_trained_even_if_another_lay_lower(self, tmp_path):
        found = read(make_comparison(tmp_path))
        for arm in found.arms:
            arm.figures["learning_rate"] = 5e-4
        axes = drawn(learning_rates(found)[0]).axes[0]
        rings = [line for line in axes.lines if line.get_markerfacecolor() == "none"]
        assert [ring.get_xdata()[ring.get_markevery()].tolist() for ring in rings] == [[5e-4]] * 4

    def test_that_diverged_are_crossed_above_all_others(self, comparison):
        axes = drawn(learning_rates(comparison)[0]).axes[0]
        curves = [line for line in axes.lines if line.get_marker() == "X"]
        heights = [line.get_ydata()[-1] for line in curves]
        assert min(heights) > max(line.get_ydata()[:-1].max() for line in curves)
        assert len(set(heights)) == 4

    def test_are_none_without_tuning(self, tmp_path):
        assert learning_rates(read(make_comparison(tmp_path, tuned=False))) == []


class TestTheHeatMaps:
    def test_are_one_for_each_arm_on_one_scale(self, comparison):
        picture = by_title(diagnostics(comparison.arms), "Residual-stream variance")
        meshes = [artist for axes in drawn(picture).axes for artist in axes.collections if isinstance(artist, QuadMesh)]
        meshes = [mesh for mesh in meshes if mesh.get_array().ndim == 2 and mesh.get_array().shape[0] == 6]
        assert len(meshes) == 4
        assert len({mesh.get_clim() for mesh in meshes}) == 1
        values = np.concatenate([mesh.get_array().ravel() for mesh in meshes])
        assert meshes[0].get_clim() == (values.min(), values.max())

    def test_come_before_the_scalars_as_lines(self, comparison):
        assert [picture.title for picture in diagnostics(comparison.arms)] == [
            "Residual-stream variance", "Angular distance (share of π)", "Loss without the layer, more by (nats)",
            "Log Z (nats)", "Expected calibration error",
        ]  # fmt: skip

    def test_can_be_of_something_this_report_has_never_heard_of(self):
        run = Run(None, "ok", [], [{"step": 0, "my_own": [1.0, None]}, {"step": 1, "my_own": [2.0, 3.0]}], {})
        (picture,) = diagnostics([Arm("one", {}, (run,))])
        assert picture.title == "My own"
        assert drawn(picture)

    def test_are_none_of_what_was_never_finite(self):
        run = Run(None, "ok", [], [{"step": 0, "a": [None, None], "b": None}, {"step": 1, "a": [None, None]}], {})
        assert diagnostics([Arm("one", {}, (run,))]) == []

    def test_say_that_one_arm_was_never_finite(self):
        bad, good = (Run(None, "ok", [], [{"step": 0, "a": [value]}], {}) for value in (None, 1.0))
        (picture,) = diagnostics([Arm("bad", {}, (bad,)), Arm("good", {}, (good,))])
        assert "bad: never finite. good: 1 to 1" in picture.alt
        svg(picture, LIGHT)


class TestAPicture:
    def test_is_the_same_svg_for_the_same_data(self, comparison):
        picture = differences(comparison)[0]
        assert svg(picture, LIGHT) == svg(picture, LIGHT) != svg(picture, DARK)

    def test_asks_nobody_for_anything(self, comparison):
        for picture in (loss_curves(comparison)[0], diagnostics(comparison.arms)[0]):
            for element in ElementTree.fromstring(svg(picture, LIGHT)).iter():
                assert not element.tag.endswith("script")
                links = [value for key, value in element.attrib.items() if key.endswith("href")]
                assert all(link.startswith(("#", "data:image/png")) for link in links)

    def test_does_not_depend_on_the_users_style(self, comparison):
        import matplotlib

        picture = differences(comparison)[0]
        plain = svg(picture, LIGHT)
        with matplotlib.rc_context({"font.size": 30, "axes.grid": False}):
            assert svg(picture, LIGHT) == plain
            assert matplotlib.rcParams["font.size"] == 30

    def test_is_put_beside_others_into_one_png(self, comparison):
        pictures = loss_curves(comparison)
        with Image.open(io.BytesIO(png(pictures, 2))) as both, Image.open(io.BytesIO(png(pictures, 1))) as column:
            assert both.width == 2 * column.width
            assert column.height == 2 * both.height
            assert (np.asarray(both.convert("L")) < 128).mean() > 0.003

    @pytest.mark.parametrize("name", ["$x^", "_hidden", "a very long name indeed that no axis has room for", "<b>&"])
    def test_takes_any_name(self, tmp_path, name):
        found = read(make_comparison(tmp_path, {"base": (2.3, None), name: (2.4, (0.1, 0.05, 0.15, 0.01, 0.02))}))
        for picture in [*loss_curves(found), *differences(found), *learning_rates(found)]:
            ElementTree.fromstring(svg(picture, DARK))
        assert len(drawn(loss_curves(found)[0]).legends[0].get_texts()) == 2

    def test_of_twenty_arms_has_room_for_their_names(self, tmp_path):
        arms = {f"placement_number_{i}": (2.3 + i / 50, i and (0.1, 0.05, 0.15, 0.01, 0.02)) for i in range(20)}
        arms["placement_number_0"] = (2.3, None)
        figure = drawn(loss_curves(read(make_comparison(tmp_path, arms, tuned=False)))[0])
        assert len(figure.legends[0].get_texts()) == 20
        assert len({str(look(LIGHT, index)) for index in range(20)}) == 20


SIGHT = {
    "full": np.eye(3),
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deuteranopia": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    "tritanopia": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}
"""What is seen of linear RGB: Machado, Oliveira and Fernandes, A physiologically-based model, 2009."""

TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour: str) -> np.ndarray:
    """Linear RGB of an sRGB colour (IEC 61966-2-1)."""
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(a: str, b: str) -> float:
    """As WCAG 2.2 defines it."""
    low, high = sorted(float(TO_XYZ[1] @ linear(colour)) for colour in (a, b))
    return (high + 0.05) / (low + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear RGB."""
    x, y, z = np.cbrt(TO_XYZ @ rgb.clip(0.009, 1) / (0.9505, 1, 1.089))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
class TestTheColours:
    def test_stand_out_from_the_paper(self, theme):
        """WCAG 2.2 asks for 3:1 of graphics and 4.5:1 of text."""
        assert all(contrast(colour, theme.paper) >= 3 for colour in theme.cycle)
        assert contrast(theme.ink, theme.paper) >= 7
        assert contrast(theme.muted, theme.paper) >= 4.5

    @pytest.mark.parametrize("sight", SIGHT)
    def test_are_told_apart_by_all(self, theme, sight):
        """Differences of about 2 can just be seen."""
        seen = [lab(np.array(SIGHT[sight]) @ linear(colour)) for colour in theme.cycle]
        assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 10


def test_an_arm_has_the_same_colour_in_every_picture(comparison):
    colour = look(LIGHT, 2)["color"]
    for picture in (*loss_curves(comparison), *learning_rates(comparison)):
        legend = drawn(picture).legends[0]
        names = [text.get_text() for text in legend.get_texts()]
        assert legend.get_lines()[names.index("peri_ln")].get_color() == colour


def test_axes_count_in_units_that_keep_figures_short():
    assert scaled(5e6, "tokens") == (1e6, "tokens (millions)")
    assert scaled(1500, "tokens") == (1, "tokens")
    assert scaled(3e9, "tokens") == (1e9, "tokens (billions)")
