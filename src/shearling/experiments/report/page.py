"""The page: one HTML file that holds its pictures and asks nobody for anything."""

from base64 import b64encode
from collections.abc import Mapping, Sequence

from shearling.experiments.report import sections
from shearling.experiments.report.data import Comparison, SingleRun
from shearling.experiments.report.executed import Executed
from shearling.experiments.report.markup import Html, element, pairs
from shearling.experiments.report.pictures import DARK, LIGHT, WIDTH, Picture, Theme, svg
from shearling.experiments.report.style import style_sheet

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""Content-Security-Policy: whatever the page should come to hold, no browser lets it run or fetch anything."""

Album = dict[str, list[Picture]]
"""The pictures by the name of their PNG: loss_curves, differences, learning_rates, diagnostics."""


def comparison_page(comparison: Comparison, album: Album, equations: Mapping[str, Sequence[Executed]]) -> str:
    """The report of a comparison.

    Args:
        equations: what each arm executes, by the arm's name; arms without are left out.
    """
    figures, arms = comparison.figures, comparison.arms
    runs = [run for arm in arms for run in arm.runs]
    parts = [
        element("h1", figures["name"]),
        element("p", sections.lead(comparison), class_="lead"),
        sections.verdicts(comparison),
        sections.warnings(comparison),
        _section("Differences", sections.difference_table(comparison), _gallery(album["differences"])),
        _section("Loss curves", sections.CURVES, _gallery(album["loss_curves"])) if album["loss_curves"] else None,
        _section("Learning rates", sections.tuning_table(comparison), _gallery(album["learning_rates"]))
        if album["learning_rates"]
        else None,
        _section("At equal cost", sections.budget_table(comparison)) if figures["budgets"] else None,
        _section("Diagnostics", sections.DIAGNOSTICS, _gallery(album["diagnostics"])) if album["diagnostics"] else None,
        _section("Equations", *sections.equations(equations, figures["baseline"])) if equations else None,
        _section("Recipe", sections.arm_table(comparison), sections.recipe(figures["recipe"], "What all arms share")),
        _section("Provenance", pairs("provenance", sections.comparison_provenance(figures, runs))),
    ]
    return _page(figures["name"], parts, len(arms))


def run_page(single: SingleRun, album: Album, equations: Sequence[Executed]) -> str:
    """The report of a single run."""
    parts = [
        element("h1", single.name),
        _section("Results", *sections.results(single.results)),
        _section("Loss curve", _gallery(album["loss_curves"])) if album["loss_curves"] else None,
        _section("Diagnostics", _gallery(album["diagnostics"])) if album["diagnostics"] else None,
        _section("Equations", *sections.run_equations(equations)) if equations else None,
        _section("Recipe", sections.recipe(single.options, "The whole config")),
        _section("Provenance", pairs("provenance", sections.provenance([single.run]))),
    ]
    return _page(single.name, parts, 1)


def _page(title: str, parts: Sequence[Html | None], arms: int) -> str:
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name_="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(style_sheet(arms))),
    )
    body = element("body", element("main", *(part for part in parts if part)))
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _section(title: str, *content: object) -> Html:
    return element("section", element("h2", title), *content)


def _gallery(pictures: Sequence[Picture]) -> Html:
    return element("div", *map(_figure, pictures), class_="pictures")


def _figure(picture: Picture) -> Html:
    size = {"width": round(96 * WIDTH), "height": round(96 * picture.height)}
    image = element(
        "picture",
        element("source", media="(prefers-color-scheme: dark)", srcset=_data(picture, DARK)),
        element("img", src=_data(picture, LIGHT), alt=picture.alt, **size),
    )
    note = element("figcaption", picture.note) if picture.note else None
    return element("figure", element("h3", picture.title), image, note)


def _data(picture: Picture, theme: Theme) -> str:
    return f"data:image/svg+xml;base64,{b64encode(svg(picture, theme).encode()).decode()}"
