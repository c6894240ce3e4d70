"""The page's style sheet, by day and by night."""

from shearling.experiments.report.pictures import DARK, LIGHT, Theme

_RULES = """
:root { color-scheme: light dark; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1rem 4rem; max-width: 74rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 2.6rem 0 .8rem; font-size: 1.3rem; }
h3 { margin: 1.2rem 0 .4rem; font-size: 1rem; overflow-wrap: anywhere; }
p { margin: .4rem 0; }
.lead, .note, figcaption { color: var(--muted); }
.note { font-size: .9rem; max-width: 50rem; }
.verdicts { display: grid; gap: .8rem; margin: 1.4rem 0; }
.verdict { padding: .9rem 1.1rem; border-left: .5rem solid var(--muted); border-radius: .4rem; background: var(--paper);
  overflow-wrap: anywhere; }
.verdict h3 { margin: 0; font-weight: 600; }
.verdict .sentence { margin: .1rem 0; font-size: 1.35rem; line-height: 1.35; }
.verdict .word { font-weight: 700; white-space: nowrap; }
.better { border-color: var(--better); } .better .word { color: var(--better); }
.worse { border-color: var(--worse); } .worse .word { color: var(--worse); }
.warnings { padding: .7rem 1.1rem; border: 2px solid var(--warning); border-radius: .4rem; overflow-wrap: anywhere; }
.warnings ul { margin: .2rem 0; padding-left: 1.2rem; }
.arm { display: flex; align-items: baseline; gap: .45em; }
td .arm { width: max-content; max-width: min(18rem, 45vw); white-space: normal; overflow-wrap: anywhere; }
.swatch { flex: none; width: .75em; height: .75em; border-radius: .15em; }
.scroll { overflow-x: auto; border-radius: .4rem; background: var(--paper); }
.scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--better); outline-offset: 2px; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
td { white-space: nowrap; }
th, td { padding: .45rem .8rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--grid); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { color: var(--muted); font-weight: 600; font-size: .88rem; vertical-align: bottom; }
.figure { text-align: right; }
.pairs th { font-weight: 400; color: var(--muted); width: 1%; white-space: nowrap; }
.pairs td { min-width: 12rem; white-space: normal; overflow-wrap: anywhere; font: .88rem/1.7 var(--mono); }
.pictures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(30rem, 100%), 1fr));
  align-items: start; }
figure { margin: 0; padding: .7rem; border-radius: .4rem; background: var(--paper); }
.scroll + .pictures, .note + .pictures { margin-top: .8rem; }
figure h3 { margin: 0 .2rem .3rem; }
figure img { display: block; width: 100%; height: auto; }
pre { margin: 0; padding: .8rem 1rem; overflow-x: auto; border-radius: .4rem; background: var(--paper);
  font: .88rem/1.6 var(--mono); }
mark { background: var(--mark); color: inherit; border-radius: .2em; }
summary { cursor: pointer; padding: .3rem 0; }
code { font-family: var(--mono); font-size: .88rem; overflow-wrap: anywhere; }
"""

_MONO = 'ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace'

_GROUNDS = {
    "light": {"ground": "#f3f5f7", "better": "#00619a", "worse": "#b34700", "warning": "#b87f00", "mark": "#fbe6bd"},
    "dark": {"ground": "#111519", "better": "#6ab8ee", "worse": "#f79a5c", "warning": "#e6b53c", "mark": "#57430f"},
}


def style_sheet(arms: int) -> str:
    """The rules, with a class `arm-0`, `arm-1`, … for the colour of each arm."""
    return (
        f":root {{ --mono: {_MONO}; }}\n{_colours(LIGHT, arms)}\n"
        f"@media (prefers-color-scheme: dark) {{\n{_colours(DARK, arms)}\n}}{_RULES}"
    )


def _colours(theme: Theme, arms: int) -> str:
    values = {"paper": theme.paper, "ink": theme.ink, "muted": theme.muted, "grid": theme.grid, **_GROUNDS[theme.name]}
    root = " ".join(f"--{name}: {colour};" for name, colour in values.items())
    swatches = [f".arm-{arm} {{ background: {theme.cycle[arm % len(theme.cycle)]}; }}" for arm in range(arms)]
    return "\n".join([f":root {{ {root} }}", *swatches])
