"""The options of losses and samplers: each kind has its own, and refuses those of the others in one line."""

import pytest

from passerelle.config import validate
from passerelle.errors import UserError
from tests.support.datasets import small_recipe
from tests.support.samplers import CONFIGS
from training.config import Recipe, load_recipe
from training.loss_config import FullLoss, MixedSampling, PopularitySampling, SampledLoss, UniformSampling


def test_a_loss_without_kind_is_the_full_softmax() -> None:
    assert small_recipe("loss.temperature=0.5").loss == FullLoss(temperature=0.5)


def test_kind_alone_gives_that_kinds_defaults() -> None:
    """Also where the recipe that is changed sets another kind."""
    assert load_recipe("sasrec", ("loss.kind=sampled",)).loss == SampledLoss()
    assert load_recipe("bert4rec", ("loss.kind=gbce",)).loss.kind == "gbce"


def test_a_sampler_may_be_named_alone() -> None:
    short = small_recipe("loss.kind=sampled", "loss.sampler=popularity").loss
    assert short == small_recipe("loss.kind=sampled", "loss.sampler.kind=popularity").loss
    assert short == SampledLoss(sampler=PopularitySampling())
    assert small_recipe("loss.kind=sampled", "loss.num_negatives=8").loss == SampledLoss(num_negatives=8)


def test_the_sampler_of_a_recipe_can_be_changed_and_replaced() -> None:
    shared = load_recipe("two_tower", ("loss.sampler.in_batch_share=0.25",)).loss
    assert isinstance(shared, SampledLoss)
    assert shared.sampler == MixedSampling(in_batch_share=0.25)
    replaced = load_recipe("two_tower", ("loss.sampler=uniform",)).loss
    assert isinstance(replaced, SampledLoss)
    assert replaced.sampler == UniformSampling()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"num_negatives": 8},
            "loss.num_negatives: goes with kind = 'sampled' or 'gbce', not with 'full'",
        ),
        ({"num_draws": 8}, "loss.num_draws: goes with kind = 'sampled' or 'gbce', not with 'full'"),
        (
            {"kind": "sampled", "max_logits": 8},
            "loss.max_logits: goes with kind = 'full', not with 'sampled'",
        ),
        ({"sampler": "mixed"}, "loss.sampler: goes with kind = 'sampled', not with 'full'"),
        (
            {"kind": "gbce", "sampler": "popularity"},
            "loss.sampler: goes with kind = 'sampled', not with 'gbce'",
        ),
        ({"kind": "gbce", "log_q_correction": False}, "loss.log_q_correction: goes with kind = 'sampled'"),
        (
            {"kind": "sampled", "log_q_correction": False, "correct_target": False},
            "loss: correct_target = False has no effect without loss.log_q_correction",
        ),
        (
            {"kind": "sampled", "gbce_calibration": 0.5},
            "loss.gbce_calibration: goes with kind = 'gbce', not with 'sampled'",
        ),
        (
            {"kind": "sampled", "sampler": {"exponent": 0.5}},
            "loss.sampler.exponent: goes with kind = 'popularity', not with 'uniform'",
        ),
        (
            {"kind": "sampled", "sampler": {"kind": "in_batch", "in_batch_share": 0.1}},
            "loss.sampler.in_batch_share: goes with kind = 'mixed', not with 'in_batch'",
        ),
        (
            {"kind": "sampled", "sampler": {"kind": "in_batch", "rate": 0.1}},
            "loss.sampler.rate: goes with kind = 'streaming', not with 'in_batch'",
        ),
        (
            {
                "kind": "sampled",
                "log_q_correction": False,
                "sampler": {"kind": "in_batch", "streaming_rate": 0.1},
            },
            "loss: sampler.streaming_rate has no effect without loss.log_q_correction",
        ),
        (
            {"kind": "sampled", "sampler": {"gather_negatives": False}},
            "loss.sampler.gather_negatives: goes with kind = 'in_batch' or 'mixed', not with 'uniform'",
        ),
        (
            {"kind": "sampled", "num_negative": 8},
            "loss.num_negative: unknown key; did you mean num_negatives?",
        ),
        (
            {"kind": "sampled", "popularity_exponent": 0.5},
            "loss.popularity_exponent: unknown key; known here: correct_target, kind, ",
        ),
        ({"temperature": 0.0}, "loss.temperature: Input should be greater than 0, got 0.0"),
        (
            {"kind": "gbce", "gbce_calibration": 1.5},
            "loss.gbce_calibration: Input should be less than or equal to 1",
        ),
        (
            {"kind": "sampled", "sampler": {"kind": "popularity", "exponent": -1}},
            "loss.sampler.exponent: Input should be greater than or",
        ),
        (
            {"kind": "sampled", "sampler": {"kind": "mixed", "in_batch_share": 1}},
            "loss.sampler.in_batch_share: Input should be less than 1",
        ),
        (
            {"kind": "sampled", "num_negatives": 2, "sampler": {"kind": "mixed", "in_batch_share": 0.2}},
            "in_batch_share = 0.2 of num_negatives = 2 is 0: sampler = 'mixed' needs some of both kinds",
        ),
        (
            {"kind": "sampled", "num_negatives": 4, "sampler": {"kind": "mixed", "in_batch_share": 0.9}},
            "of num_negatives = 4 is 4: sampler",
        ),
        (
            {"kind": "sampled", "sampler": {"kind": "streaming", "rate": 1}},
            "loss.sampler.rate: Input should be less than 1",
        ),
        (
            {"kind": "sampled", "sampler": "nearest"},
            "loss.sampler.kind: Input should be 'uniform', 'log_uniform', ",
        ),
        ({"kind": "sampled", "sampler": 3}, "loss.sampler: "),
    ],
)
def test_idle_and_impossible_options_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as refused:
        validate(Recipe, {"loss": values}, "recipe.toml", given=True)
    assert str(refused.value).startswith("recipe.toml: loss")
    assert message in str(refused.value)


def test_a_resolved_configuration_is_accepted_again() -> None:
    for sampler in CONFIGS.values():
        recipe = Recipe(loss=SampledLoss(sampler=sampler))
        assert Recipe.model_validate(recipe.model_dump()) == recipe
        assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_differences_name_what_only_one_of_two_has() -> None:
    full, mixed = Recipe(), Recipe(loss=SampledLoss(sampler=MixedSampling()))
    assert full.differences(full) == {}
    differences = full.differences(mixed)
    assert next(iter(differences.items())) == ("loss.kind", ("full", "sampled"))
    assert differences["loss.sampler.in_batch_share"] == (None, 0.5)
    assert mixed.differences(Recipe(loss=SampledLoss())) == {
        "loss.sampler.kind": ("mixed", "uniform"),
        "loss.sampler.in_batch_share": (0.5, None),
        "loss.sampler.gather_negatives": (True, None),
    }
