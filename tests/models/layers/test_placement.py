"""Placements against their equations in float64, and in their limiting cases."""

import math
import sys

import pytest
import torch

from shearling.errors import UserError
from shearling.models.cost import parameters
from shearling.models.layers.placements import PLACEMENTS
from shearling.models.spec import ModelSpec
from shearling.models.transformer import Transformer

SMALL = {"d_model": 24, "n_layers": 4, "n_heads": 3, "intermediate_size": 40, "vocab_size": 61, "max_seq_len": 16}
L, D = SMALL["n_layers"], SMALL["d_model"]


def spec(placement, **options) -> ModelSpec:
    ends = {"final_norm": placement["kind"] != "ngpt"}
    return ModelSpec(**{**SMALL, "init_std": 0.2, **ends, **options}, placement=placement)


def made(placement, **options) -> Transformer:
    """A model whose vectors have moved away from where they begin, so that a forgotten one shows."""
    model = Transformer(spec(placement, **options), seed=1).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    return model


def tokens() -> torch.Tensor:
    return torch.randint(61, (2, 12), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def hidden(model: Transformer) -> torch.Tensor:
    return model(tokens())


def copied(source: Transformer, target: Transformer) -> Transformer:
    """`target` with the weights of `source`, name by name."""
    target.load_state_dict(source.state_dict())
    return target


def same(a: Transformer, b: Transformer) -> bool:
    return torch.allclose(hidden(a), hidden(b), rtol=1e-5, atol=1e-5)


# The equation of one sublayer: stream x, branch F, norms N and M (the second one), parameters and constants by name.
def rms(weight):
    return lambda x: weight.double() * x / ((x * x).mean(-1, keepdim=True) + 1e-6).sqrt()


def unit(x):
    return x / (x * x).sum(-1, keepdim=True).sqrt()


EQUATIONS = {
    "pre": lambda x, F, N, M, p, n: x + F(N(x)),
    "post": lambda x, F, N, M, p, n: N(x + F(x)),
    "sandwich": lambda x, F, N, M, p, n: x + M(F(N(x))),
    "reordered": lambda x, F, N, M, p, n: x + N(F(x)),
    "deepnorm": lambda x, F, N, M, p, n: N((2 * L) ** 0.25 * x + F(x)),
    "mix": lambda x, F, N, M, p, n: N(x + F(x)) if n <= 1 else x + F(N(x)),  # a quarter of four blocks
    "lns": lambda x, F, N, M, p, n: x + F(N(x) / n**0.5),
    "lns_gain": lambda x, F, N, M, p, n: x + F(N(x)),
    "subln": lambda x, F, N, M, p, n: x + F(N(x)),
    "keel": lambda x, F, N, M, p, n: M(2 * L * x + F(N(x))),
    "skipinit": lambda x, F, N, M, p, n: x + p["scale"] * F(N(x)),
    "rezero": lambda x, F, N, M, p, n: x + p["scale"] * F(N(x)),
    "layerscale": lambda x, F, N, M, p, n: x + p["scale"] * F(N(x)),
    "ngpt": lambda x, F, N, M, p, n: unit(x + (0.05 * D**0.5 * p["rate"]).abs() * (unit(F(x)) - x)),
    "gpas": lambda x, F, N, M, p, n: (1 - p["gate"] * torch.sigmoid(p["gate"])) * (x + F(N(x))),
}
IN_TWO_FORMS = {"hybrid", "normformer", "residual"}  # tested by themselves below


def test_every_placement_has_an_equation_here():
    assert EQUATIONS.keys() | IN_TWO_FORMS == PLACEMENTS.keys()


@pytest.mark.parametrize("part", ["attention", "feedforward"])
@pytest.mark.parametrize("kind", EQUATIONS)
@torch.no_grad()
def test_a_sublayer_is_its_equation_in_float64(kind, part):
    model = made({"kind": kind})
    x, context = model.enter(model.embed(tokens()))
    for layer, block in enumerate(model.layers, 1):
        sublayer = getattr(block, part)
        norms = [
            rms(norm.weight) if (norm := getattr(sublayer, name, None)) else None for name in ("norm", "post_norm")
        ]
        expected = EQUATIONS[kind](
            x.double(),
            lambda h, sublayer=sublayer: sublayer.branch(h.float(), context).double(),
            *norms,
            {name: parameter.double() for name, parameter in sublayer.named_parameters(recurse=False)},
            layer,
        )
        torch.testing.assert_close(sublayer(x, context).double(), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_hybridnorm_norms_inside_attention_and_before_the_feedforward_s_residual():
    model = made({"kind": "hybrid"})
    x, context = model.enter(model.embed(tokens()))
    block = model.layers[1]
    attention, feedforward = block.attention, block.feedforward
    torch.testing.assert_close(attention(x, context), x + attention.branch(x, context))
    y = rms(feedforward.norm.weight)(x.double())
    expected = y + feedforward.branch(y.float(), context).double()
    torch.testing.assert_close(feedforward(x, context).double(), expected, rtol=1e-5, atol=1e-5)
    # Inside, a head's queries have unit mean square times the gain, whatever the size of the input.
    q, _ = attention.branch.queries_keys(1000 * x, context)
    again, _ = attention.branch.queries_keys(x, context)
    torch.testing.assert_close(q, again, rtol=1e-3, atol=1e-3)


def test_hybridnorm_star_begins_with_a_pre_ln_block():
    model = made({"kind": "hybrid", "star": True})
    names = {name for name, _ in model.named_parameters()}
    assert "layers.0.attention.norm.weight" in names
    assert "layers.1.attention.norm.weight" not in names


@torch.no_grad()
def test_normformer_adds_a_norm_after_attention_gains_on_heads_and_a_norm_on_hidden_values():
    model = made({"kind": "normformer"})
    x, context = model.enter(model.embed(tokens()))
    block = model.layers[0]
    attention, feedforward = block.attention, block.feedforward
    branch = attention.branch(attention.norm(x), context)
    torch.testing.assert_close(attention(x, context), x + attention.post_norm(branch))
    h = feedforward.norm(x)
    inner = feedforward.branch
    mixed = torch.nn.functional.silu(inner.gate_proj(h)) * inner.up_proj(h)
    expected = x + inner.down_proj(rms(inner.hidden_norm.weight)(mixed.double()).float())
    torch.testing.assert_close(feedforward(x, context), expected, rtol=1e-5, atol=1e-5)
    # A head whose gain is zero says nothing.
    attention.branch.head_scale.data.zero_()
    torch.testing.assert_close(attention.branch(h, context), torch.zeros_like(h))


@torch.no_grad()
def test_residual_keeps_two_streams_and_adds_them_at_the_end():
    model = made({"kind": "residual", "scale": 0.5})
    embedded = model.embed(tokens())
    _, context = model.enter(embedded)
    x, r = embedded.double(), 0.5 * embedded.double()
    for block in model.layers:
        for sublayer in (block.attention, block.feedforward):
            y = sublayer.branch(x.float(), context).double()
            x, r = rms(sublayer.norm.weight)(x + y), r + 0.5 * y
    expected = x + rms(model.final_norm.weight)(r)
    torch.testing.assert_close(hidden(model).double(), expected, rtol=1e-4, atol=1e-4)


class TestLimitingCases:
    def test_deepnorm_with_alpha_and_beta_one_is_post_ln(self):
        post = made({"kind": "post"})
        assert same(post, copied(post, made({"kind": "deepnorm", "alpha": 1.0, "beta": 1.0})))
        assert not same(post, copied(post, made({"kind": "deepnorm"})))

    @pytest.mark.parametrize(("share", "kind"), [(0.0, "pre"), (1.0, "post")])
    def test_mix_ln_at_its_ends_is_pre_and_post_ln(self, share, kind):
        base = made({"kind": kind})
        assert same(base, made({"kind": "mix", "share": share}))
        assert not same(base, made({"kind": "mix", "share": 0.5}))

    @pytest.mark.parametrize("kind", ["pre", "post", "sandwich", "deepnorm", "lns", "hybrid", "keel"])
    def test_prores_at_its_end_is_its_base(self, kind):
        base, grown = made({"kind": kind}), made({"kind": kind, "residual_warmup": 10})
        grown.step = 10 * L
        assert same(base, grown)
        grown.step = 10 * L - 1  # the last block is not there yet
        assert not same(base, grown)

    def test_prores_begins_as_the_identity(self):
        model = made({"kind": "pre", "residual_warmup": 10})
        model.step = 0
        expected = model.final_norm(model.embed(tokens()))
        torch.testing.assert_close(hidden(model), expected)

    def test_prores_lets_block_l_in_at_l_times_its_length(self):
        model = made({"kind": "pre", "residual_warmup": 10})
        model.step = 5
        x, context = model.enter(model.embed(tokens()))
        for layer, block in enumerate(model.layers, 1):
            sublayer = block.attention
            added = sublayer(x, context) - x
            torch.testing.assert_close(added, 5 / (10 * layer) * sublayer.branch(sublayer.norm(x), context))

    def test_layernorm_scaling_of_a_single_layer_is_pre_ln(self):
        assert same(made({"kind": "pre"}, n_layers=1), made({"kind": "lns"}, n_layers=1))

    def test_the_two_forms_of_lns_agree_at_first_and_differ_in_what_is_learned(self):
        gain = Transformer(spec({"kind": "lns_gain"}), seed=1)
        assert same(gain, Transformer(spec({"kind": "lns"}), seed=1))
        gains = [block.attention.norm.weight.mean().item() for block in gain.layers]
        assert gains == pytest.approx([layer**-0.5 for layer in range(1, L + 1)])

    @pytest.mark.parametrize("kind", ["skipinit", "rezero"])
    def test_skipinit_and_rezero_begin_as_the_identity(self, kind):
        model = Transformer(spec({"kind": kind}, norm={"kind": "none"}), seed=1)
        torch.testing.assert_close(hidden(model), model.embed(tokens()))

    def test_gpas_begins_as_pre_ln(self):
        assert same(Transformer(spec({"kind": "pre"}), seed=1), Transformer(spec({"kind": "gpas"}), seed=1))

    def test_gpas_scales_activations_and_lets_gradients_pass(self):
        model = made({"kind": "gpas"})
        block = model.layers[0]
        block.attention.gate.data.fill_(1.0)
        for parameter in block.attention.branch.parameters():
            parameter.data.zero_()
        x, context = model.enter(model.embed(tokens()))
        x = x.detach().requires_grad_()
        y = block.attention(x, context)
        torch.testing.assert_close(y, (1 - 1 / (1 + math.exp(-1))) * x)
        y.sum().backward()
        torch.testing.assert_close(x.grad, torch.ones_like(x))

    def test_layerscale_of_one_is_pre_ln(self):
        ones = Transformer(spec({"kind": "layerscale", "init": 1.0}), seed=1)
        assert same(Transformer(spec({"kind": "pre"}), seed=1), ones)

    def test_pre_ln_with_layernorm_is_pre_rmsnorm_on_a_re_centred_stream(self):
        """arXiv 2305.14858: where everything that enters the stream has zero mean, the two norms are one."""
        layer = Transformer(spec({"kind": "pre"}, norm={"kind": "layernorm", "eps": 1e-5, "bias": False}), seed=1)
        rms = Transformer(spec({"kind": "pre"}, norm={"kind": "rmsnorm", "eps": 1e-5}, tie_embeddings=True), seed=1)
        assert not same(layer, rms)
        with torch.no_grad():
            rms.embed.weight -= rms.embed.weight.mean(dim=1, keepdim=True)
            for block in rms.layers:
                for matrix in (block.attention.branch.o_proj.weight, block.feedforward.branch.down_proj.weight):
                    matrix -= matrix.mean(dim=0, keepdim=True)
        assert same(layer, rms)

    def test_one_scalar_serves_both_sublayers_of_rezero_and_gpas(self):
        for kind, name in (("rezero", "scale"), ("gpas", "gate")):
            block = Transformer(spec({"kind": kind})).layers[0]
            assert getattr(block.attention, name) is getattr(block.feedforward, name)


class TestConstants:
    def test_deepnorm_s_at_twelve_layers(self):
        sublayer = Transformer(spec({"kind": "deepnorm"}, n_layers=12)).layers[0].attention
        assert sublayer.alpha == pytest.approx(2.2134, abs=5e-5)
        assert sublayer.beta == pytest.approx(0.3195, abs=5e-5)

    def test_deepnorm_draws_v_o_and_feedforward_smaller_than_q_and_k(self):
        wide = {"d_model": 240, "n_heads": 4, "intermediate_size": 600, "n_layers": 12}
        model = Transformer(spec({"kind": "deepnorm"}, **wide))
        for name, weight in model.named_parameters():
            matrix = name.split(".")[-2]
            if not matrix.endswith("_proj"):
                continue
            xavier = math.sqrt(2 / sum(weight.shape))
            expected = xavier * (1 if matrix in ("q_proj", "k_proj") else 0.3195)
            assert weight.std().item() == pytest.approx(expected, rel=0.05), name

    def test_subln_draws_them_larger(self):
        model = Transformer(spec({"kind": "subln"}, d_model=240, n_heads=4, intermediate_size=600, n_layers=12))
        weight = model.layers[3].attention.branch.v_proj.weight
        assert weight.std().item() == pytest.approx(math.sqrt(math.log(24)) * math.sqrt(2 / 480), rel=0.05)

    def test_keel_s_alpha_is_the_number_of_sublayers(self):
        assert Transformer(spec({"kind": "keel"}, n_layers=12)).layers[0].attention.alpha == 24

    @pytest.mark.parametrize(("init", "expected"), [("scaled", 0.2 / math.sqrt(2 * L)), ("plain", 0.2)])
    def test_scaled_initialization_draws_output_projections_smaller_and_plain_does_not(self, init, expected):
        wide = {"d_model": 240, "n_heads": 4, "intermediate_size": 600}
        for kind in ("pre", "lns"):
            weight = Transformer(spec({"kind": kind}, init=init, **wide)).layers[0].attention.branch.o_proj.weight
            assert weight.std().item() == pytest.approx(expected, rel=0.05)

    def test_depth_scaled_initialization_divides_by_the_root_of_the_layer(self):
        wide = {"d_model": 240, "n_heads": 4, "intermediate_size": 600}
        model = Transformer(spec({"kind": "pre"}, init="depth", **wide))
        for layer, block in enumerate(model.layers, 1):
            for weight in (block.attention.branch.q_proj.weight, block.feedforward.branch.down_proj.weight):
                assert weight.std().item() == pytest.approx(0.2 / math.sqrt(layer), rel=0.05)


class TestNGPT:
    def vectors_of_matrices(self, model):
        yield model.embed.weight
        for block in model.layers:
            for name, matrix in {
                **dict(block.attention.branch.named_children()),
                **dict(block.feedforward.branch.named_children()),
            }.items():
                if name.endswith("_proj"):
                    yield matrix.weight.T if name in ("o_proj", "down_proj") else matrix.weight

    def test_every_matrix_is_made_of_unit_vectors_at_first_and_after_a_step(self, make_experiment, corpus, tmp_path):
        from shearling.data.stream import Batch
        from shearling.training.state import build_state
        from shearling.training.step import train_step

        config = make_experiment(tmp_path, model={"placement": {"kind": "ngpt"}, "final_norm": False})
        state = build_state(config, torch.device("cpu"), False)
        for stage in range(2):
            for vectors in self.vectors_of_matrices(state.model):
                torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)), rtol=1e-5, atol=1e-5)
            if stage == 0:
                train_step(
                    state,
                    Batch(torch.randint(300, (8, 33)).numpy()),
                    config,
                    factor=1e-2 / config.training.optimizer.learning_rate,
                )

    def test_the_stream_stays_on_the_sphere(self):
        model = made({"kind": "ngpt"}, final_norm=False)
        lengths = hidden(model).norm(dim=-1)
        torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=1e-5, atol=1e-5)

    def test_queries_and_keys_have_unit_length_at_first_and_scores_are_scaled_up(self):
        model = Transformer(spec({"kind": "ngpt"}), seed=1)
        x, context = model.enter(model.embed(tokens()))
        attention = model.layers[0].attention.branch
        for vectors in attention.queries_keys(x, context):
            torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(vectors.shape[:-1]))
        assert attention.scale == pytest.approx(math.sqrt(8))

    def test_logits_are_cosines_times_a_gain(self):
        model = made({"kind": "ngpt"}, final_norm=False)
        cosines = hidden(model).double() @ model.embed.weight.double().T
        gain = D**0.5 * model.head_gain.weight.double().flatten()
        torch.testing.assert_close(model.logits(hidden(model)).double(), cosines * gain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("pre", 0), ("post", 0), ("reordered", 0), ("deepnorm", 0), ("mix", 0), ("lns", 0), ("lns_gain", 0),
        ("residual", 0), ("sandwich", 2 * D * L), ("keel", 2 * D * L), ("layerscale", 2 * D * L), ("skipinit", 2 * L),
        ("rezero", L), ("gpas", L),
        ("subln", (D + 40) * L),  # before the output projection D, before the projection down F
        ("normformer", (D + 3 + 40) * L),  # after attention D, a gain a head, on the hidden values F
        ("hybrid", (3 * 8 - D) * L),  # of queries, keys and values K each, in place of the norm before attention
        # gains of queries and keys D, of gate and up F each, rates 2·D a block, a gain a token; no norms at all
        ("ngpt", (D + 2 * 40 + 2 * D - 2 * D) * L + 61 - D),
    ],
)  # fmt: skip
def test_a_placement_adds_as_many_parameters_as_its_paper_says(kind, extra):
    assert parameters(spec({"kind": kind})).total == parameters(spec({"kind": "pre"})).total + extra


def test_the_sandwich_adds_12288_parameters_to_llama_71m(root):
    from shearling.config import load
    from shearling.models.spec import ModelFile

    path = root / "configs/models/llama-71m.yaml"
    pre, sandwich = (load(ModelFile, path, [f"placement.kind={kind}"]).value.model for kind in ("pre", "sandwich"))
    assert parameters(sandwich).total - parameters(pre).total == 12_288


@pytest.mark.parametrize("kind", PLACEMENTS)
def test_every_placement_learns(kind):
    """A few steps on one batch bring the loss down, and every parameter has a gradient at some step."""
    from shearling.training.loss import head_loss

    model = Transformer(spec({"kind": kind}, init_std=0.05), seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x, losses, moved = tokens(), [], set()
    for _ in range(12):
        loss = head_loss(model(x[:, :-1]).flatten(0, 1), model.lm_head, x[:, 1:].flatten())
        loss.backward()
        moved |= {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        optimizer.step()
        optimizer.zero_grad()
        model.constrain()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    assert moved == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("kind", PLACEMENTS)
def test_no_placement_lets_later_tokens_through(kind):
    model, x = made({"kind": kind}), tokens()
    changed = x.clone()
    changed[:, 7:] = (x[:, 7:] + 1) % 61
    with torch.no_grad():
        torch.testing.assert_close(model(x)[:, :7], model(changed)[:, :7], rtol=1e-5, atol=1e-5)


def test_a_placement_of_the_user_s_own(tmp_path, monkeypatch):
    (tmp_path / "my_placements.py").write_text(
        "from shearling.models.layers.placement import Placement\n"
        "class Damped(Placement):\n"
        "    def __init__(self, spec, where, sibling=None, factor=0.5):\n"
        "        super().__init__(spec, where, sibling)\n"
        "        self.factor = factor\n"
        "    def update(self, x, F):\n"
        "        return x + self.factor * F(self.norm(x))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    pre = made({"kind": "pre"})
    assert same(pre, copied(pre, made({"kind": "my_placements:Damped", "factor": 1.0})))
    assert not same(pre, copied(pre, made({"kind": "my_placements:Damped"})))
    with pytest.raises(UserError, match="unexpected keyword argument 'factr'"):
        made({"kind": "my_placements:Damped", "factr": 1.0})


@pytest.mark.parametrize(
    ("placement", "options", "message"),
    [
        ({"kind": "hybrid"}, {"qk_norm": {"kind": "l2"}}, "norms queries and keys itself: set qk_norm: null"),
        ({"kind": "residual"}, {"final_norm": False}, "set final_norm: true"),
        ({"kind": "ngpt", "residual_warmup": 9}, {}, "residual_warmup has no effect"),
        ({"kind": "ngpt"}, {"n_kv_heads": 1}, "set n_kv_heads: null"),
        ({"kind": "ngpt"}, {"final_norm": True}, "set final_norm: false"),
        ({"kind": "ngpt"}, {"norm": {"kind": "layernorm"}}, "no norms but its own"),
        ({"kind": "ngpt"}, {"learned_embedding_scale": True}, "norms embeddings itself"),
        ({"kind": "deepnorm"}, {"init": "plain"}, "draws its weights in its own way"),
        ({"kind": "pre"}, {"norm": {"kind": "none"}, "qk_norm": {"kind": "per_head"}}, "set qk_norm: null"),
        ({"kind": "pre"}, {"norm": {"kind": "none"}, "embedding_norm": True}, "nothing to norm with"),
    ],
)
def test_what_does_not_go_together_is_refused(placement, options, message):
    with pytest.raises(ValueError, match=message):
        spec(placement, **options)


def test_a_gain_that_is_not_there_cannot_be_scaled():
    with pytest.raises(UserError, match="lns_gain scales the norms' gains"):
        Transformer(spec({"kind": "lns_gain"}, norm={"kind": "simplermsnorm"}))


def test_a_placement_that_calls_its_branch_twice_is_refused(tmp_path, monkeypatch):
    (tmp_path / "twice.py").write_text(
        "from shearling.models.layers.placement import Placement\n"
        "class Twice(Placement):\n"
        "    def update(self, x, F):\n"
        "        return x + F(self.norm(x)) + F(x)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(UserError, match=r"Twice\.update calls F twice"):
        hidden(made({"kind": "twice:Twice"}))


def test_a_share_of_mix_ln_that_floating_point_rounds_down_counts_whole():
    from shearling.models.layers.placement import Where
    from shearling.models.layers.placements import MixLN, PostNorm, PreNorm

    options = spec({"kind": "mix", "share": 0.58}).placement
    kinds = [MixLN.of(options, Where(layer, 50, "attention")) for layer in (29, 30)]
    assert kinds == [PostNorm, PreNorm]
