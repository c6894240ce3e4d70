"""What may be compared: arms, seeds, and what is refused."""

from pathlib import Path

import pytest

from shearling.config import dump
from shearling.data.prepare import prepare
from shearling.errors import UserError
from shearling.experiments.compare.plan import Arm, differing, make_plan, split_arguments
from shearling.training.warmup_controls import control_arms


@pytest.fixture
def write(experiment, tmp_path):
    """Writes a tiny experiment as NAME.yaml and gives its path: `write("wide", model={...})`."""

    def written(name: str, **options) -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(dump(experiment(name=name, **options)))
        return str(path)

    return written


@pytest.fixture
def arms(write) -> list[str]:
    return [write("rms"), write("layer", model={"norm": {"kind": "layernorm"}})]


class TestArguments:
    def test_are_configs_and_overrides_in_any_order(self):
        given = ["a.yaml", "b=c.yaml", "steps=3", "--seed", "1", "--clip=null", "plain"]
        assert split_arguments(given) == (
            ["a.yaml", "b=c.yaml", "plain"],
            ["steps=3", "--seed", "1", "--clip=null"],
        )

    def test_name_arms_after_their_configs_or_anew(self, arms):
        assert [arm.name for arm in make_plan(arms).arms] == ["rms", "layer"]
        assert [arm.name for arm in make_plan([arms[0], f"other-name={arms[1]}"]).arms] == ["rms", "other-name"]

    def test_override_every_arm(self, arms):
        plan = make_plan([*arms, "training.steps=5", "--seed", "7"], seeds=2)
        assert [arm.config.training.steps for arm in plan.arms] == [5, 5]
        assert [plan.seeds(arm) for arm in plan.arms] == [[7, 8], [7, 8]]
        assert plan.paired

    def test_make_the_first_arm_the_baseline_unless_told(self, arms):
        assert make_plan(arms).baseline == "rms"
        assert make_plan(arms, baseline="layer").baseline == "layer"

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda arms: arms[:1], "at least two arms"),
            (lambda arms: [*arms, arms[0]], r"two arms are named rms: name one anew"),
            (lambda arms: [arms[0], f"a b={arms[1]}"], "no name of an arm"),
            (lambda arms: [arms[0], f"../x={arms[1]}"], "no name of an arm"),
            (lambda arms: [*arms, "output_dir=x"], "--out"),
            (lambda arms: [*arms, "name=x"], r"^name: (?s:.*)x=CONFIG"),
            (lambda arms: [*arms, "vocab_size=200"], r"model\.vocab_size 200 is smaller than the 300"),
            (lambda arms: [*arms, "missing.yaml"], "missing.yaml"),
            (lambda arms: [*arms, "training.stepz=5"], "did you mean"),
            (lambda arms: [*arms, "placement=post"], r'a map, not "post": write placement\.kind=post$'),
            (lambda arms: [*arms, "norm=my.module:Own"], r"write norm\.kind=my\.module:Own$"),
        ],
    )
    def test_that_make_no_comparison_are_refused(self, arms, change, message):
        with pytest.raises(UserError, match=message):
            make_plan(change(arms))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"baseline": "post"}, "no such arm: the arms are rms, layer"),
            ({"tune": "wd"}, "--tune lr"),
            ({"grid": "1e-3"}, "add --tune lr"),
            ({"tune": "lr", "grid": "1e-3,high"}, "separated by commas"),
            ({"tune": "lr", "grid": "1e-3,-1"}, "greater than zero"),
            ({"over": ["training.shedule"]}, r"did you mean training\.schedule"),
            ({"over": ["lr"]}, r"did you mean training\.optimizer\.learning_rate\?"),
            ({"over": ["zzz"]}, "no such option$"),
            ({"over": ["kind"]}, "write more of the name"),
        ],
    )
    def test_that_name_nothing_are_refused(self, arms, options, message):
        with pytest.raises(UserError, match=message):
            make_plan(arms, **options)


class TestArms:
    def test_may_differ_in_their_norm(self, arms):
        plan = make_plan(arms)
        assert set(differing(plan.arms)) == {"model.norm.kind", "model.norm.eps", "model.norm.bias"}
        assert plan.warnings == ()

    def test_may_differ_in_what_affects_no_result(self, write, arms):
        make_plan([arms[0], write("other", model={"norm": {"kind": "layernorm"}}, training={"save_every": 3})])

    def test_that_differ_in_more_are_refused_by_key_and_value(self, write, arms):
        other = write("other", model={"d_model": 64}, training={"clip": None})
        with pytest.raises(UserError) as refusal:
            make_plan([*arms, other])
        lines = str(refusal.value).splitlines()
        assert lines[0] == "model.d_model: 32 in rms, 32 in layer, 64 in other"
        assert lines[1] == "training.clip: 1.0 in rms, 1.0 in layer, null in other"
        assert lines[2].endswith("--over model.d_model --over training.clip")

    def test_may_differ_in_what_is_said_to_be_compared(self, write, arms):
        other = write("other", model={"d_model": 64}, training={"schedule": {"warmup_steps": 5, "min_ratio": 0.0}})
        make_plan([arms[0], other], over=["d_model", "training.schedule"])
        with pytest.raises(UserError, match=r"^training\.schedule\.min_ratio: "):
            make_plan([arms[0], other], over=["d_model", "warmup_steps"])

    def test_are_told_of_a_permission_that_nothing_needs(self, arms):
        assert make_plan(arms, over=["training.clip"]).warnings == (
            "--over training.clip: the arms do not differ there",
        )

    def test_may_differ_in_their_learning_rate_where_it_is_tuned(self, write, arms):
        other = write("other", training={"optimizer": {"learning_rate": 3e-3}})
        make_plan([arms[0], other], tune="lr")
        with pytest.raises(UserError, match="learning_rate"):
            make_plan([arms[0], other])

    def test_that_do_not_differ_are_refused(self, arms):
        with pytest.raises(UserError, match=r"rms and again do not differ at all(?s:.*)--over seed"):
            make_plan([arms[0], f"again={arms[0]}"])

    def test_of_minutes_are_refused_unless_told(self, write):
        arms = [
            write("rms", training={"minutes": 1}),
            write("layer", training={"minutes": 1}, model={"norm": {"kind": "layernorm"}}),
        ]
        with pytest.raises(UserError, match="--over minutes"):
            make_plan(arms)
        make_plan(arms, over=["minutes"])


class TestControls:
    def test_join_the_arms_that_call_for_them_and_none_twice(self, write, arms):
        warmed = [write(kind, random_warmup={"kind": kind, "steps": 3}) for kind in ("iid_shifted", "gaussian")]
        plan = make_plan([arms[0], *warmed], controls=control_arms)
        assert [arm.name for arm in plan.arms] == [
            "rms", "iid_shifted", "gaussian", "iid_shifted-real", "iid_shifted-moments", "gaussian-moments",
        ]  # fmt: skip
        alone = make_plan(warmed[:1], controls=control_arms)
        assert [arm.name for arm in alone.arms][1:] == [
            "iid_shifted-none", "iid_shifted-real", "iid_shifted-moments",
        ]  # fmt: skip

    def test_are_what_the_warmed_arm_is_tested_against(self, write, arms):
        warmed = write("warmed", random_warmup={"kind": "gaussian", "steps": 3})
        assert make_plan([arms[0], warmed], controls=control_arms).baseline == "warmed"
        assert make_plan([arms[0], warmed], controls=control_arms, baseline="rms").baseline == "rms"
        assert make_plan([arms[0], warmed]).baseline == "rms"

    def test_that_no_arm_calls_for_are_refused(self, arms):
        with pytest.raises(UserError, match=r"^--controls"):
            make_plan(arms, controls=control_arms)


class TestSeeds:
    def test_that_differ_make_independent_samples_where_that_is_said(self, write, arms):
        other = write("other", seed=100)
        with pytest.raises(UserError, match=r"^seed: 0 in rms, 100 in other"):
            make_plan([arms[0], other])
        plan = make_plan([arms[0], other], over=["seed"])
        assert not plan.paired
        assert [plan.seeds(arm) for arm in plan.arms] == [[0, 1, 2], [100, 101, 102]]

    def test_that_overlap_are_refused(self, write, arms):
        other = write("other", seed=2)
        make_plan([arms[0], other], over=["seed"], seeds=2)
        with pytest.raises(UserError, match="overlap"):
            make_plan([arms[0], other], over=["seed"], seeds=3)

    def test_beyond_the_largest_are_refused(self, arms):
        with pytest.raises(UserError, match="lower it"):
            make_plan([*arms, f"seed={2**63 - 2}"])


class TestData:
    @pytest.fixture
    def other_data(self, tmp_path, corpus) -> dict[str, Path]:
        (tmp_path / "text.txt").write_text("\n<|endoftext|>\n".join(f"Story {i} is told." for i in range(300)))
        prepare([str(tmp_path / "text.txt")], tmp_path / "same", tokenizer=corpus / "tokenizer")
        prepare([str(tmp_path / "text.txt")], tmp_path / "new", vocab_size=290)
        return {"same": tmp_path / "same", "new": tmp_path / "new"}

    @pytest.mark.parametrize(
        ("which", "differ", "warning"),
        [("same", "data differ", "data differ"), ("new", "data and tokenizer differ", "bits per byte")],
    )
    def test_must_be_the_same_unless_told(self, write, arms, other_data, which, differ, warning):
        other = write("other", data={"path": str(other_data[which])}, model={"norm": {"kind": "layernorm"}})
        with pytest.raises(UserError, match=rf"the hashes of {differ}(?s:.*)--over data"):
            make_plan([arms[0], other])
        (warned,) = make_plan([arms[0], other], over=["data"]).warnings
        assert warning in warned

    def test_may_lie_in_two_places(self, write, arms, corpus, tmp_path):
        (tmp_path / "link").symlink_to(corpus)
        make_plan(
            [arms[0], write("other", data={"path": str(tmp_path / "link")}, model={"norm": {"kind": "layernorm"}})]
        )


def test_an_arm_at_another_learning_rate_is_the_same_in_all_else(experiment):
    arm = Arm("a", experiment())
    assert differing([arm, arm.at(0.5)]) == ["training.optimizer.learning_rate"]
    assert arm.at(0.5).learning_rate == 0.5
