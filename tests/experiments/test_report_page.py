"""The page of a report: what stands there, in which order, and that nothing else can."""

import base64
import json
from xml.etree import ElementTree

import pytest
from report_example import ARMS, equations_of, make_comparison, make_results, make_run
from report_reader import Page

from shearling.cli import main
from shearling.errors import UserError
from shearling.experiments import report
from shearling.experiments.report import write_report
from shearling.experiments.report.data import read
from shearling.experiments.report.executed import Executed
from shearling.experiments.report.markup import Html, element, number, probability, table
from shearling.experiments.report.page import POLICY, comparison_page, run_page
from shearling.experiments.report.sections import lead, word

HOSTILE = """</style></pre><script>hacked=1</script><img src=x onerror="hacked=1">'&"""
EQUATIONS = {
    "preln": [Executed("every layer (6)\n  x ← x + Attention(N(x))\n  N(x) = g ⊙ x / √(mean(x²) + 1e-06)")],
    "postln": [Executed("every layer (6)\n  x ← N(x + Attention(x))\n  N(x) = g ⊙ x / √(mean(x²) + 1e-06)")],
}
NO_PICTURES = {"loss_curves": [], "differences": [], "learning_rates": [], "diagnostics": []}
TAGS = {
    "html", "head", "meta", "title", "style", "body", "main", "section", "article", "div", "span", "h1", "h2", "h3",
    "p", "strong", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "figure", "picture", "source", "img", "pre",
    "mark", "details", "summary",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A comparison with its report, whose equations are those that the models execute."""
    folder = make_comparison(tmp_path_factory.mktemp("comparison"))
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return Page((folder / "report.html").read_text())


def without_pictures(folder) -> Page:
    return Page(comparison_page(read(folder), NO_PICTURES, EQUATIONS))


class TestAComparisonsPage:
    def test_goes_from_the_verdicts_to_where_they_come_from(self, page):
        order = [
            "placements on stories", "postln ✗ worse by 0.048 nats (0.031 to 0.065), p 0.008 after Holm",
            "peri_ln ≈ not distinguishable at this scale: 3 seeds could have seen 0.021 nats",
            "custom_norm ✓ better by 0.039 nats (0.022 to 0.056), p 0.006 after Holm",
            "Warnings the machine was shared", "Differences", "Differences from preln", "Loss curves", "Learning rates",
            "At equal cost", "Diagnostics", "Residual-stream variance", "Log Z", "Equations", "Recipe", "Provenance",
        ]  # fmt: skip
        places = []
        for words in order:
            places.append(page.text.index(words, places[-1] if places else 0))
        assert places == sorted(places)

    def test_has_every_figure_of_the_differences(self, page):
        assert "postln 2.3490 0.0081 +0.0480 +0.0310 to +0.0650 0.008 0.0190 2 ok, 1 diverged" in page.text
        assert "peri_ln 2.2900 0.0081 −0.0110 −0.0280 to +0.0060 0.11 0.0210 3 ok" in page.text
        assert "preln 2.3010 0.0081 baseline – – – 3 ok" in page.text

    def test_reads_losses_at_equal_cost_and_says_which_are_mid_run(self, page):
        assert "at 4,915,200 tokens at 8.7e+13 FLOPs * at 231.4 seconds of training *" in page.text
        assert "preln 2.3010 2.3010 – postln 2.3490 2.3490 2.3490" in page.text

    def test_shows_the_tuning(self, page):
        assert "preln 0.002 6 0.2120" in page.text

    def test_shows_recipe_and_provenance(self, page):
        for words in (
            "training.optimizer.learning_rate 0.001", "model.placement.kind model.norm.kind parameters",
            "command shearling compare preln.yaml postln.yaml --seeds 3", "threads per run 1", "torch 2.13.0",
            "git commit 0123abc", "unigram loss 5.1200 nats per token",
        ):  # fmt: skip
            assert words in page.text

    def test_shows_under_each_arm_what_its_own_model_executes(self, page):
        assert len({equations_of(name) for name in ARMS}) == len(ARMS)
        for name in ARMS:
            assert f" {name} {equations_of(name)}" in page.whole

    def test_describes_every_picture_in_words(self, page):
        images = [attributes for tag, attributes in page.tags if tag == "img"]
        assert len(images) == 9
        assert all(len(image["alt"]) > 30 for image in images)

    def test_holds_all_it_needs(self, page):
        assert {tag for tag, _ in page.tags} <= TAGS
        for attribute in ("href", "action", "data", "background", "xlink:href"):
            assert page.values(attribute) == []
        pictures = page.values("src") + page.values("srcset")
        assert len(pictures) == 18
        assert all(picture.startswith("data:image/svg+xml;base64,") for picture in pictures)

    def test_lets_no_browser_ask_for_more(self, page):
        assert {"http-equiv": "Content-Security-Policy", "content": POLICY} in [a for _, a in page.tags]
        assert "default-src 'none'" in POLICY

    def test_has_its_pictures_beside_it(self, folder):
        names = {path.name for path in folder.iterdir()}
        pictures = {"loss_curves.png", "differences.png", "learning_rates.png", "diagnostics.png"}
        assert names == {"comparison.json", "report.html", "runs", *pictures}
        assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in pictures)

    def test_is_the_same_for_the_same_folder(self, tmp_path):
        make_comparison(tmp_path, dict(list(ARMS.items())[:2]), tuned=False)
        pages = [write_report(tmp_path).read_bytes() for _ in range(2)]
        assert pages[0] == pages[1]


class TestWhatIsNotThere:
    def test_leaves_no_section(self, tmp_path):
        make_comparison(tmp_path, tuned=False)
        for diagnostics in tmp_path.rglob("diagnostics.jsonl"):
            diagnostics.unlink()
        text = Page(write_report(tmp_path).read_text()).text
        assert "Diagnostics" not in text
        assert "Learning rates" not in text
        assert not (tmp_path / "diagnostics.png").exists()

    def test_in_the_runs_leaves_the_verdicts(self, tmp_path):
        make_comparison(tmp_path)
        (tmp_path / "runs").rename(tmp_path / "elsewhere")
        text = Page(write_report(tmp_path).read_text()).text
        assert "better by 0.039" in text
        assert text.count("not recorded: ") == 4
        assert "Loss curves" not in text

    def test_of_chance_with_one_seed_is_said(self, tmp_path):
        make_comparison(tmp_path)
        figures = json.loads((tmp_path / "comparison.json").read_text())
        for arm in figures["arms"]:
            arm["sd"] = None
            if arm["versus"]:
                unknown = dict.fromkeys(("low", "high", "p", "p_holm", "sd", "smallest_visible"))
                arm["versus"] |= {**unknown, "verdict": "one seed says nothing of chance"}
        (tmp_path / "comparison.json").write_text(json.dumps(figures))
        text = Page(write_report(tmp_path).read_text()).text
        assert "? no verdict: one seed says nothing of chance" in text
        assert "postln 2.3490 – +0.0480 – – – " in text


def test_equations_are_marked_where_the_baseline_has_none_such(folder):
    text = comparison_page(read(folder), NO_PICTURES, EQUATIONS)
    assert "<mark>  x ← N(x + Attention(x))</mark>" in text
    assert text.count("<mark>") == 1
    unknown = comparison_page(read(folder), NO_PICTURES, {**EQUATIONS, "preln": [Executed("", "not recorded")]})
    assert "<mark>" not in unknown


class TestTheSeedsAreSaid:
    @pytest.mark.parametrize(
        ("figures", "own", "words"),
        [
            ({}, [], "seeds 0, 1, 2, paired by seed · loss"),
            ({"same_start": False}, [], "seeds 0, 1, 2, paired by seed · loss"),
            ({"same_start": True}, [], "seeds 0, 1, 2, paired: the same initial tensors and batches · loss"),
            ({"paired": False}, [], "3 seeds for each arm, of its own: not paired · loss"),
            ({"paired": False}, ["postln"], "seeds 0, 1, 2, paired by seed, but for postln with seeds of its own"),
        ],
    )
    def test_as_paired_only_where_and_as_far_as_they_are(self, folder, figures, own, words):
        found = read(folder)
        found.figures.update(figures)
        for arm in found.arms[1:] if own else ():
            arm.figures["versus"]["paired"] = arm.name not in own
        assert words in lead(found)


def test_a_comparison_with_failed_runs_bears_what_is_not_known(tmp_path):
    make_comparison(tmp_path)
    figures = json.loads((tmp_path / "comparison.json").read_text())
    words = {
        "postln": "1 of 3 runs diverged; of all runs, with losses capped at ln V: worse by 0.048 nats",
        "peri_ln": "both failed in every run: 3 of 3 runs diverged, 3 of 3 baseline runs diverged",
        "custom_norm": "no verdict in nats: other tokenizers; compare bits per byte",
    }
    for arm in figures["arms"][1:]:
        arm["versus"] |= {"smallest_visible": None, "paired": True, "verdict": words[arm["name"]]}
        if arm["name"] != "postln":
            arm["versus"]["p_holm"] = None
    (tmp_path / "comparison.json").write_text(json.dumps(figures))
    text = Page(write_report(tmp_path).read_text()).text
    assert f"postln ✗ worse: {words['postln']}" in text
    assert f"peri_ln ? no verdict: {words['peri_ln']}" in text
    assert f"custom_norm ? {words['custom_norm']}" in text
    assert "+0.0310 to +0.0650 0.008 – 2 ok, 1 diverged" in text


class TestASingleRunsPage:
    def test_has_results_curve_diagnostics_equations_and_recipe(self, tmp_path):
        make_results(make_run(tmp_path, "solo", 2.3))
        page = Page(write_report(tmp_path).read_text())
        titles = ("Results", "Loss curve", "Diagnostics", "Equations", "Recipe", "Provenance")
        places = [page.text.index(f" {title} ") for title in titles]
        assert places == sorted(places)
        assert "validation loss (nats per token) 7.6200 2.3010" in page.text
        assert "4,915,200 tokens, 9.1e+13 FLOPs, 240 s, 20,480 tokens/s" in page.text
        assert "command shearling train solo" in page.text
        assert (tmp_path / "loss_curves.png").exists()
        assert not (tmp_path / "differences.png").exists()

    def test_says_that_a_run_has_not_ended(self, tmp_path):
        make_run(tmp_path, "solo", 2.3)
        assert "has not ended" in Page(run_page(read(tmp_path), NO_PICTURES, [])).text

    def test_says_that_a_run_diverged(self, tmp_path):
        make_results(make_run(tmp_path, "solo", 2.3))
        results = json.loads((tmp_path / "results.json").read_text())
        (tmp_path / "results.json").write_text(json.dumps(results | {"outcome": "diverged", "loss": None}))
        text = Page(run_page(read(tmp_path), NO_PICTURES, [])).text
        assert "✗ Diverged" in text
        assert "(nats per token) 7.6200 –" in text


def hostile(value, key=""):
    """The value with a script in every text that is none of the contract's own words."""
    if isinstance(value, dict):
        free = key in ("recipe", "options", "losses", "packages", "hashes")
        return {(name + HOSTILE if free else name): hostile(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [hostile(each) for each in value]
    return value + HOSTILE if isinstance(value, str) and key not in ("kind", "folder") else value


class TestHostileTexts:
    def test_stay_texts_wherever_they_stand(self, tmp_path):
        make_comparison(tmp_path, dict(list(ARMS.items())[:2]))
        figures = json.loads((tmp_path / "comparison.json").read_text())
        (tmp_path / "comparison.json").write_text(json.dumps(hostile(figures) | {"kind": "comparison"}))
        for path in tmp_path.rglob("provenance.json"):
            path.write_text(json.dumps(hostile(json.loads(path.read_text()))))
        found = read(tmp_path)
        album = NO_PICTURES | {"differences": report.differences(found), "loss_curves": report.loss_curves(found)}
        text = comparison_page(found, album, {arm.name: [Executed(HOSTILE, HOSTILE)] for arm in found.arms})
        page = Page(text)
        assert {tag for tag, _ in page.tags} <= TAGS
        assert page.values("onerror") == []
        assert page.text.count(HOSTILE) > 100
        for picture in page.values("src"):
            tree = ElementTree.fromstring(base64.b64decode(picture.partition(",")[2]))
            assert not [node for node in tree.iter() if node.tag.endswith("script")]

    def test_are_escaped_by_whatever_makes_an_element(self):
        assert element("p", "<b>", title='"') == '<p title="&quot;">&lt;b&gt;</p>'
        assert element("p", Html("<b></b>")) == "<p><b></b></p>"
        assert "&lt;" in table("<", ["<"], [["<"]])
        assert "<<" not in table("<", ["<"], [["<"]])


class TestFigures:
    @pytest.mark.parametrize(("value", "shown"), [(None, "–"), (-1.5, "−1.5000"), (float("nan"), "–"), (0.0, "0.0000")])
    def test_have_a_real_minus_and_a_dash_for_none(self, value, shown):
        assert number(value) == shown

    @pytest.mark.parametrize(
        ("value", "shown"), [(0.0, "< 0.001"), (0.00412, "0.0041"), (0.049, "0.049"), (0.5, "0.50"), (None, "–")]
    )
    def test_of_chance_are_never_a_bare_zero(self, value, shown):
        assert probability(value) == shown

    @pytest.mark.parametrize(
        ("versus", "expected"),
        [
            (None, "baseline"),
            ({"p_holm": None, "difference": -1.0}, "no verdict"),
            ({"p_holm": 0.049, "difference": -1.0}, "better"),
            ({"p_holm": 0.049, "difference": 1.0}, "worse"),
            ({"p_holm": 0.05, "difference": -1.0}, "not distinguishable"),
        ],
    )
    def test_make_a_verdict_in_a_word(self, versus, expected):
        assert word(versus) == expected


class TestTheCommand:
    def test_says_where_the_report_is(self, tmp_path, capsys):
        make_results(make_run(tmp_path, "solo", 2.3))
        with pytest.raises(SystemExit) as ended:
            main(["report", str(tmp_path)])
        assert not ended.value.code
        assert capsys.readouterr().out == f"report: {tmp_path / 'report.html'}\n"

    def test_refuses_a_folder_of_neither_sort(self, tmp_path, capsys):
        with pytest.raises(SystemExit) as ended:
            main(["report", str(tmp_path)])
        assert ended.value.code == 2
        assert "give the folder of a finished `shearling compare`" in capsys.readouterr().err

    def test_keeps_the_old_page_where_the_new_one_cannot_be_written(self, tmp_path, monkeypatch):
        make_run(tmp_path, "solo", 2.3)
        (tmp_path / "report.html").write_text("old")

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(report, "write_atomically", full)
        with pytest.raises(UserError, match="No space left on device"):
            write_report(tmp_path)
        assert (tmp_path / "report.html").read_text() == "old"
