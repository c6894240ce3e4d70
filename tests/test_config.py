"""What loading a config promises, on a schema of its own: `shearling.config` knows no other."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from pydantic import Field, ValidationError

from shearling.config import HARMLESS, Spec, dump, fingerprint, load
from shearling.config.merge import merge
from shearling.config.tree import Entry, Tree, values
from shearling.errors import UserError


class Steam(Spec):
    kind: Literal["steam"] = "steam"
    power: float = 1.0
    coal: float = 2.0


class Diesel(Spec):
    kind: Literal["diesel"] = "diesel"
    power: float = 5.0
    octane: int = 95


class Car(Spec):
    seats: int = 40
    doors: tuple[int, ...] = (2,)
    power: float = 0.0


class Trip(Spec):
    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = (("miles", "hours"),)
    miles: float | None = None
    hours: float | None = None


class Train(Spec):
    name: str
    seed: int = 0
    notes: str = Field("", json_schema_extra=HARMLESS)
    timetable_offset: int = 0
    whistle: bool | Literal["auto"] = "auto"
    engine: Annotated[Steam | Diesel, Field(discriminator="kind")] = Field(default_factory=lambda: Steam(coal=3.0))
    car: Car = Car()
    trip: Trip = Trip()


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file under an empty working directory, and gives back its name."""
    monkeypatch.chdir(tmp_path)

    def _write(name: str, text: str) -> str:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
        return name

    return _write


def complaints(path: str, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(Train, path, overrides)
    return str(caught.value).splitlines()


# Layers


def test_later_files_win_maps_merge_and_lists_replace(write):
    write("a.yaml", "name: a\ncar: {seats: 1, doors: [1, 2, 3]}")
    write("b.yaml", "name: b\ncar: {doors: [4]}")
    loaded = load(Train, write("c.yaml", "extends: [a.yaml, b.yaml]\nname: c"))
    assert (loaded.value.name, loaded.value.car.seats, loaded.value.car.doors) == ("c", 1, (4,))


def test_each_value_knows_its_file_and_line(write):
    write("lib/a.yaml", "name: a\ncar:\n  seats: 1\n")
    loaded = load(Train, write("c.yaml", "seed: 3\nextends: lib/a.yaml\n"), ["whistle=true"])
    assert loaded.origins["car.seats"] == "lib/a.yaml:3"
    assert loaded.origins["seed"] == "c.yaml:1"
    assert loaded.origins["whistle"] == "command line"
    assert loaded.origins["engine.coal"] == "default"


def test_extends_is_relative_to_the_file_that_says_it(write):
    write("shared/base.yaml", "name: base")
    write("deep/middle.yaml", "extends: ../shared/base.yaml")
    assert load(Train, write("runs/top.yaml", "extends: ../deep/middle.yaml")).value.name == "base"


def test_a_file_may_be_reached_by_two_ways(write):
    write("base.yaml", "name: base")
    write("a.yaml", "extends: base.yaml")
    write("b.yaml", "extends: base.yaml\nseed: 2")
    assert load(Train, write("c.yaml", "extends: [a.yaml, b.yaml]")).value.seed == 2


def test_a_cycle_is_told_with_its_chain(write):
    write("a.yaml", "extends: b.yaml")
    write("b.yaml", "extends: a.yaml")
    assert complaints("a.yaml") == ["a.yaml: extends itself: a.yaml → b.yaml → a.yaml"]


def test_missing_files_are_told_together_each_with_its_chain(write):
    write("a.yaml", "extends: [gone.yaml, lost.yaml]")
    assert complaints("a.yaml") == [
        "gone.yaml: no such file (a.yaml → gone.yaml)",
        "lost.yaml: no such file (a.yaml → lost.yaml)",
    ]


def maps(inner):
    """Maps with numbers, maps and a list; a list has a key of its own, since OmegaConf merges none with a map."""
    values = dict.fromkeys("abc", inner) | {"list": st.lists(st.integers(), max_size=2)}
    return st.fixed_dictionaries({}, optional=values)


@given(st.lists(maps(st.recursive(st.integers(), maps, max_leaves=8)), max_size=4))
@settings(max_examples=100, deadline=None)
def test_layers_merge_as_omegaconf_merges_them(layers):
    def tree(data: dict) -> Tree:
        return {key: tree(value) if isinstance(value, dict) else Entry(value, "here") for key, value in data.items()}

    merged, problems = merge(Spec, [tree(layer) for layer in layers])
    assert values(merged) == OmegaConf.to_container(OmegaConf.merge({}, *layers))
    assert problems == []


def test_a_changed_kind_keeps_what_it_knows_and_drops_the_rest(write):
    write("a.yaml", "name: a\nengine: {kind: steam, power: 7, coal: 9}")
    engine = load(Train, write("b.yaml", "extends: a.yaml\nengine: {kind: diesel}")).value.engine
    assert engine == Diesel(power=7)


def test_a_changed_kind_takes_its_own_defaults(write):
    assert load(Train, write("a.yaml", "name: a\nengine: {kind: diesel}")).value.engine == Diesel()


def test_a_partial_map_keeps_the_default_kind_and_its_field_s_defaults(write):
    assert load(Train, write("a.yaml", "name: a\nengine: {power: 2}")).value.engine == Steam(power=2, coal=3)


# Exclusive keys


@pytest.mark.parametrize("overrides", [["hours=2"], ["--hours", "2"]])
def test_the_command_line_replaces_a_rival(write, overrides):
    trip = load(Train, write("a.yaml", "name: a\ntrip: {miles: 1}"), overrides).value.trip
    assert trip == Trip(hours=2)


def test_a_later_file_replaces_a_rival(write):
    write("a.yaml", "name: a\ntrip: {miles: 1}")
    assert load(Train, write("b.yaml", "extends: a.yaml\ntrip: {hours: 2}")).value.trip == Trip(hours=2)


def test_two_rivals_in_one_file_are_an_error(write):
    path = write("a.yaml", "name: a\ntrip:\n  miles: 1\n  hours: 2")
    assert complaints(path) == ["a.yaml:3: trip: miles (a.yaml:3) and hours (a.yaml:4) exclude each other: keep one"]


def test_two_rivals_on_the_command_line_are_an_error(write):
    (line,) = complaints(write("a.yaml", "name: a"), "miles=1", "hours=2")
    assert line.startswith("command line: trip: ")


# Values


def test_numbers_are_read_as_people_write_them(write):
    value = load(Train, write("a.yaml", "name: a\nseed: 2e3\nengine: {coal: 1e-3}\ncar: {power: 1}")).value
    assert (value.seed, value.engine.coal, value.car.power) == (2000, 0.001, 1.0)


def test_a_reference_takes_another_key_s_value(write):
    value = load(Train, write("a.yaml", 'name: run\nnotes: "of ${name}"\nseed: ${car.seats}')).value
    assert (value.notes, value.seed) == ("of run", 40)


def test_a_boolean_is_no_number_and_a_text_neither(write):
    path = write("a.yaml", 'name: a\nseed: true\ncar: {seats: "3"}')
    assert complaints(path) == [
        "a.yaml:2: seed: should be a valid integer, not true",
        'a.yaml:3: car.seats: should be a valid integer, not "3"',
    ]


def test_a_loaded_config_is_frozen(write):
    value = load(Train, write("a.yaml", "name: a")).value
    with pytest.raises(ValidationError, match="frozen"):
        value.seed = 1


# Errors


def test_all_errors_come_at_once_each_with_file_key_and_mend(write):
    write("base.yaml", "car: {seat: 3}\nengine: {kind: deisel}")
    path = write("a.yaml", "extends: base.yaml\nseed: many\nwhistle: loud\nwhisle: 3\nnotes: ${nobody}")
    assert sorted(complaints(path, "octan=1", "power=1", "--miles")) == [
        "a.yaml: name: is missing",
        'a.yaml:2: seed: should be a valid integer, not "many"',
        'a.yaml:3: whistle: should be a valid boolean, not "loud" or should be auto, not "loud"',
        "a.yaml:4: whisle: unknown key: did you mean whistle?",
        "a.yaml:5: notes: ${nobody} has no value: Interpolation key 'nobody' not found",
        "base.yaml:1: car.seat: unknown key: did you mean car.seats?",
        'base.yaml:2: engine.kind: should be steam or diesel, not "deisel": did you mean diesel?',
        "command line: --miles: no option of this command, and as an override it has no value: write --miles=value",
        "command line: octan: unknown key: did you mean engine.octane?",
        "command line: power: may be engine.power, car.power: write more of the name",
    ]


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        ("car: {octane: 3}", "car.octane: unknown key: did you mean engine.octane?"),
        ("engine: {kind: steam, octane: 3}", "engine.octane: unknown key: it is an option of kind diesel"),
        ("car: {dors: 3}", "car.dors: unknown key: did you mean car.doors?"),
        ("to: 3", "to: unknown key: did you mean timetable_offset?"),
        ("car: {zzzzzz: 3}", "car.zzzzzz: unknown key: car takes seats, doors, power"),
        ("car.seats: 3", "car.seats: unknown key: a dot is no part of a name: write maps one in another"),
    ],
)
def test_an_unknown_key_is_told_with_what_was_probably_meant(write, text, mend):
    assert complaints(write("a.yaml", f"name: a\n{text}")) == [f"a.yaml:2: {mend}"]


BOMB = "k0: &k0 [x, x]\n" + "".join(f"k{i + 1}: &k{i + 1} [*k{i}, *k{i}]\n" for i in range(20))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"- 1", "is not a map"),
        (b"just words", "is not a map"),
        (b"name: a\nname: b", "duplicate key"),
        (b"1: a", "is not a name"),
        (b"car:\n\tseats: 1", "is not YAML"),
        (b"name: !!python/object/apply:os.system [ls]", "tag"),
        (b"name: !!binary aGVsbG8=", "tag"),
        (BOMB.encode(), "aliases"),
        (b"{<<: {name: a}}", "merge key"),
        (b"\x7fELF\x00\xff\xfe", "is not UTF-8"),
        (b"name: a\x00b", "is not YAML"),
        (b"name: a\n---\nname: b", "another document"),
        (b"name: " + b"[" * 10_000, "nested deeper"),
        (b"name: " + b"x" * 2_000, "is a text of 2,000 characters"),
        (b"#" * 100_000, "larger than 64 KiB"),
        (b"name: a\nseed: 99999999999999999999", "more than 64 bits"),
        (b"name: a\nseed: " + b"9" * 9_000, "characters"),
        (b"name: a\ncar: {power: .inf}", "finite"),
        (b"name: a\ncar: {power: .nan}", "finite"),
        (b'name: "${name}"', "Recursive interpolation"),
        (b"name: '${seed'", "no viable alternative"),
        (b'name: "${oc.decode:' + b"[" * 900 + b'}"', "${...}"),
        (b"name: ???", "Missing mandatory value"),
        (b"name: a\nextends: {a: 1}", "a file or a list of files"),
        (b'name: a\nextends: "a\\0b"', "NUL"),
        (b"name: a\nextends: [" + b"a.yaml, " * 2_000 + b"a.yaml]", "extends itself"),
    ],
)
def test_a_malformed_or_hostile_file_is_told_by_name(tmp_path, monkeypatch, content, reason):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_bytes(content)
    lines = complaints("a.yaml")
    assert all(line.startswith("a.yaml") for line in lines)
    assert reason in "\n".join(lines)


def test_references_that_double_at_each_step_are_refused(write):
    lines = [f'k{i}: "${{k{i + 1}}}${{k{i + 1}}}"' for i in range(40)]
    assert complaints(write("a.yaml", "\n".join(lines))) == ["a.yaml:1: more than 16 ${...} in one config"]


@pytest.mark.parametrize("path", [".", "/dev/null", "gone.yaml", "x" * 300])
def test_what_is_no_file_is_told_by_name(write, path):
    (line,) = complaints(path)
    assert line.startswith(f"{path}: ")


# Overrides


@pytest.mark.parametrize(
    "overrides",
    [
        ["timetable_offset=3"],
        ["timetable-offset=3"],
        ["--timetable_offset", "3"],
        ["--timetable-offset=3"],
        ["timetable_offset=1", "timetable_offset=3"],
    ],
)
def test_an_override_has_many_forms(write, overrides):
    assert load(Train, write("a.yaml", "name: a"), overrides).value.timetable_offset == 3


def test_a_section_that_may_be_absent_gives_way_to_what_is_always_there(write):
    class Snow(Spec):
        seats: int = 0
        engine: int = 0
        plough: bool = True

    class WinterTrain(Train):
        snow: Snow | None = None

    train = load(WinterTrain, write("a.yaml", "name: a"), ["seats=3", "engine={coal: 4}", "plough=false"]).value
    assert (train.car.seats, train.engine.coal, train.snow) == (3, 4, Snow(plough=False))


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("car.doors=[1, 2]", lambda train: train.car.doors == (1, 2)),
        ("doors=[1, 2]", lambda train: train.car.doors == (1, 2)),
        ("engine={kind: diesel, octane: 98}", lambda train: train.engine == Diesel(octane=98)),
        ("engine.octane=98", None),
        ("car={seats: 3}", lambda train: train.car == Car(seats=3)),
        ("coal=1e-3", lambda train: train.engine.coal == 0.001),
        ("miles=null", lambda train: train.trip == Trip()),
        ("notes=a=b", lambda train: train.notes == "a=b"),
        ("notes='3: 4'", lambda train: train.notes == "3: 4"),
        ("seed=-3", lambda train: train.seed == -3),
    ],
)
def test_an_override_s_value_is_yaml(write, override, read):
    path = write("a.yaml", "name: a")
    if read is None:
        (line,) = complaints(path, override)
        assert line == "command line: engine.octane: unknown key: it is an option of kind diesel"
    else:
        assert read(load(Train, path, [override]).value)


@pytest.mark.parametrize("override", ["seeds", "seed=", "notes=a: b", "notes=!!set {a}", "car.seats.x=1", "doors=[1"])
def test_a_malformed_override_is_one_line(write, override):
    (line,) = complaints(write("a.yaml", "name: a"), override)
    assert line.startswith("command line: ")


# Records


@given(
    name=st.from_regex(r"[a-z0-9.:#'\"{}\[\]&*!|>%@-]{1,12}", fullmatch=True),
    coal=st.floats(allow_nan=False, allow_infinity=False),
    doors=st.lists(st.integers(-(2**63) + 1, 2**63 - 1), max_size=3),
)
@settings(max_examples=100, deadline=None)
def test_a_dumped_config_reads_back_equal(tmp_path_factory, name, coal, doors):
    value = Train(name=name, engine=Steam(coal=coal), car=Car(doors=tuple(doors)), trip=Trip(miles=3))
    path = tmp_path_factory.mktemp("dump") / "config.yaml"
    path.write_text(dump(value))
    assert load(Train, path).value == value
    assert load(Train, path, ["hours=2"]).value.trip == Trip(hours=2)


def test_a_fingerprint_heeds_all_but_what_is_harmless():
    base = Train(name="a")
    assert fingerprint(base) == fingerprint(Train(name="a", notes="elsewhere"))
    changes = [{"name": "b"}, {"seed": 1}, {"engine": Diesel()}, {"car": Car(seats=1)}]
    others = [Train(**{"name": "a", **change}) for change in changes]
    assert len({fingerprint(value) for value in [base, *others]}) == 5


def test_a_fingerprint_is_the_same_in_every_process():
    # By hand: SHA-256 of the canonical JSON of all but `notes`.
    text = json.dumps(
        {
            "car": {"doors": [2], "power": 0.0, "seats": 40},
            "engine": {"coal": 3.0, "kind": "steam", "power": 1.0},
            "name": "a",
            "seed": 0,
            "timetable_offset": 0,
            "trip": {"hours": None, "miles": None},
            "whistle": "auto",
        },
        separators=(",", ":"),
    )
    assert fingerprint(Train(name="a")) == hashlib.sha256(text.encode()).hexdigest()


def test_a_leading_tilde_is_the_home_folder(root, monkeypatch):
    from pathlib import Path

    from shearling.training.spec import ExperimentSpec

    monkeypatch.setenv("HOME", "/home/someone")
    loaded = load(ExperimentSpec, root / "configs/experiments/preln.yaml", ["output_dir=~/runs", "data.path=~/data"])
    assert loaded.value.output_dir == Path("/home/someone/runs")
    assert loaded.value.data.path == Path("/home/someone/data")
    with pytest.raises(UserError, match="output_dir: ~nobody-here: no such home folder"):
        load(ExperimentSpec, root / "configs/experiments/preln.yaml", ["output_dir=~nobody-here"])
