"""Mutated copies of the shipped YAML files: each is shown, or refused with a clear error."""

import contextlib
import io
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from shearling.cli import main

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml"))
EXPERIMENT = "configs/experiments/demo.yaml"

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 3),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=8),
    st.dates(),
    st.sampled_from(["${name}", "${nobody}", "${", "???", "auto", "inf", "1e3", "..", "/", 10**30, 2**62, 1e300]),
)
junk = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


@st.composite
def with_junk(draw, text: str) -> str:
    """Some map's key deleted, misspelt, or given another value."""
    data = yaml.safe_load(text)
    places = list(_places(data))
    holder, key = draw(st.sampled_from(places))
    change = draw(st.sampled_from(["delete", "misspell", "replace", "add"]))
    if change == "delete":
        del holder[key]
    elif change == "misspell":
        cut = draw(st.integers(0, len(key) - 1))
        holder[key[:cut] + draw(st.text(max_size=2)) + key[cut + 1 :]] = holder.pop(key)
    elif change == "replace":
        holder[key] = draw(junk)
    else:
        holder[draw(st.text(max_size=10))] = draw(junk)
    return yaml.dump(data, Dumper=yaml.SafeDumper, allow_unicode=True)


def _places(data):
    for key, value in data.items():
        yield data, key
        if isinstance(value, dict):
            yield from _places(value)


@st.composite
def with_damage(draw, text: str) -> bytes:
    """Lines cut, doubled or swapped, bytes flipped, the end missing."""
    lines = text.splitlines(keepends=True)
    at = draw(st.integers(0, len(lines) - 1))
    content = text.encode()
    byte = draw(st.integers(0, len(content) - 1))
    inserted = draw(st.binary(max_size=6) | st.text(alphabet="[]{}:,-&*!|>'\"%@`#?\n\t $", max_size=6).map(str.encode))
    damages = [
        "".join(lines[:at] + lines[at + 1 :]).encode(),
        "".join([*lines[:at], lines[at], *lines[at:]]).encode(),
        "".join([*lines[:at], "  ", *lines[at:]]).encode(),
        "".join([*lines[at:], *lines[:at]]).encode(),
        content[:byte],
        content[:byte] + inserted + content[byte:],
        content[:byte] + inserted + content[byte + 1 :],
    ]
    return draw(st.sampled_from(damages))


@st.composite
def mutations(draw) -> tuple[str, bytes]:
    file = draw(st.sampled_from(FILES))
    text = (ROOT / file).read_text()
    mutated = draw(st.one_of(with_junk(text), with_damage(text)))
    return file, mutated.encode(errors="surrogatepass") if isinstance(mutated, str) else mutated


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """A working directory with copies of the shipped files."""
    folder = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(ROOT / "configs", folder / "configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def shown(file: str) -> tuple[int, str, str]:
    """Status, output and errors of `shearling show FILE`, in this process: a traceback would end the test."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main(["show", file])
    return ended.value.code or 0, out.getvalue(), err.getvalue()


@given(mutations())
@settings(max_examples=300, deadline=None)
def test_a_mutated_config_is_shown_or_refused_with_a_clear_error(copies, mutation):
    file, content = mutation
    original = (copies / file).read_bytes()
    try:
        (copies / file).write_bytes(content)
        # A recipe is no experiment: it is judged in one that extends it.
        top = EXPERIMENT if "/training/" in file else file
        status, out, err = shown(top)
    finally:
        (copies / file).write_bytes(original)
    if status == 0:
        assert "FLOPs per token" in out
        assert err == ""
    else:
        assert status == 2
        assert out == ""
        # Text of the user's own may hold line breaks, so not each line must begin so.
        assert err.startswith("error: ")
        assert "configs/" in err
