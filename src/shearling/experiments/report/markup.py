"""HTML in which every text is escaped, by construction: only what these functions made counts as markup."""

import json
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


VOID = ("img", "source", "meta", "br")
"""Elements without an end tag."""


def element(name: str, *children: object, **attributes: object) -> Html:
    """One element; children that are no Html are escaped, None is left out. `class_` and the like lose their `_`,
    `aria_label` becomes `aria-label`."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{given}>" if name in VOID else f"<{name}{given}>{together(children)}</{name}>")


def together(parts: Iterable[object]) -> Html:
    """Parts one after the other."""
    return Html("".join(part if isinstance(part, Html) else escape(str(part)) for part in parts if part is not None))


def table(label: str, head: Sequence[object], rows: Iterable[Sequence[object]], words: Sequence[int] = (0,)) -> Html:
    """A table that scrolls by itself where the screen is narrow.

    Args:
        label: what it is, for those who hear the page.
        words: columns of text; the others hold figures, and stand to the right.
    """
    classes = [None if column in words else "figure" for column in range(len(head))]
    header = [element("th", each, scope="col", class_=kind) for each, kind in zip(head, classes, strict=True)]
    body = [
        element("tr", *(element("td", each, class_=kind) for each, kind in zip(row, classes, strict=True)))
        for row in rows
    ]
    whole = element("table", element("thead", element("tr", *header)), element("tbody", *body))
    return element("div", whole, class_="scroll", role="region", tabindex=0, aria_label=label)


def pairs(label: str, rows: Iterable[tuple[object, object]]) -> Html:
    """A table of names and values."""
    body = [element("tr", element("th", name, scope="row"), element("td", value)) for name, value in rows]
    whole = element("table", element("tbody", *body), class_="pairs")
    return element("div", whole, class_="scroll", role="region", tabindex=0, aria_label=label)


def number(value: float | None, form: str = ".4f") -> str:
    """A figure with a real minus sign; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return format(value, form).replace("-", "−")


def probability(value: float | None) -> str:
    """A p-value to two digits, never a bare zero."""
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def plain(value: Any) -> str:
    """An option's value as a config file writes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
