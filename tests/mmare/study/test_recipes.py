from dataclasses import asdict, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmare.errors import StudyError
from mmare.models.registry import MODELS, model_options
from mmare.study.recipes import RECIPES, recipe_of
from mmare.study.specs import TrainingSpec
from mmare.study.study import parse_study
from mmare.study.tables import from_table

DEFAULTS = asdict(TrainingSpec())
EVERY = [(model, name) for model in sorted(RECIPES) for name in RECIPES[model]]


def content_of(model="mmare", training=None, **options: object):
    return {
        "study": {"name": "tiny", "classes": ["no", "yes"]},
        "modality": [{"name": "ct", "kind": "features", "width": 8}],
        "model": {"name": model, **options},
        **({} if training is None else {"training": training}),
    }


def study_of(model="mmare", training=None, **options: object):
    return parse_study(content_of(model, training, **options), source="test")


def test_recipes_are_of_models_that_exist():
    assert set(RECIPES) <= set(MODELS)
    assert all(RECIPES.values())


@pytest.mark.parametrize(("model", "name"), EVERY)
def test_a_recipe_sets_what_there_is_to_set(model, name):
    recipe = RECIPES[model][name]
    from_table(TrainingSpec, recipe.training, "recipe")
    from_table(MODELS[model].Options, recipe.model, "recipe")
    assert "recipe" not in recipe.training
    assert set(recipe.training) <= {each.name for each in fields(TrainingSpec)}


@pytest.mark.parametrize(("model", "name"), EVERY)
def test_a_study_that_says_nothing_has_the_recipes_values_and_defaults_elsewhere(model, name):
    study = study_of(model, {"recipe": name})
    recipe = RECIPES[model][name]
    wanted = {**DEFAULTS, **recipe.training, "recipe": name}
    assert asdict(study.training) == wanted
    options = asdict(model_options(study))
    assert {key: options[key] for key in recipe.model} == dict(recipe.model)
    assert {key: getattr(study.federation, key) for key in recipe.federation} == dict(recipe.federation)


@pytest.mark.parametrize("model", sorted(MODELS))
def test_the_first_recipe_stands_where_none_is_named(model):
    first = next(iter(RECIPES.get(model, RECIPES["mmare"])))
    assert study_of(model) == study_of(model, {"recipe": first})
    assert study_of(model).training.recipe == first
    assert recipe_of(model, None) == recipe_of(model, first)


@pytest.mark.parametrize(("model", "name"), EVERY)
def test_what_the_study_says_goes_before_the_recipe(model, name):
    study = study_of(model, {"recipe": name, "rounds": 77, "learning_rate": 0.5})
    assert (study.training.rounds, study.training.learning_rate) == (77, 0.5)


@pytest.mark.parametrize("model", sorted(MODELS))
def test_an_unknown_recipe_is_refused_by_name(model):
    with pytest.raises(StudyError, match=rf"\[training\] recipe of {model} must be one of .*'secret'"):
        study_of(model, {"recipe": "secret"})


def test_a_recipe_that_is_no_text_is_refused():
    with pytest.raises(StudyError, match=r"\[training\] recipe"):
        study_of(training={"recipe": 3})


@pytest.mark.parametrize(("model", "name"), EVERY)
def test_a_study_with_a_recipe_is_the_same_study_once_written_out(model, name):
    study = study_of(model, {"recipe": name})
    again = parse_study(study.to_dict(), source="again")
    assert again == study
    assert again.hash == study.hash


def test_another_model_brings_its_own_recipe():
    study = study_of("drim")
    assert study.training.optimizer == "adamw"
    changed = study.override(["model.name=mmare"])
    assert changed == study_of("mmare")
    assert changed.override(["model.name=drim"]) == study


def test_what_the_study_said_itself_stays_with_another_model():
    study = study_of("drim", {"rounds": 77, "batch_size": 5})
    changed = study.override(["model.name=hypermm-embedding"])
    assert (changed.training.rounds, changed.training.batch_size) == (77, 5)
    assert changed.training.schedule == "plateau"
    assert changed.training.optimizer == TrainingSpec().optimizer


def test_assignments_go_before_the_recipe_that_comes_with_them_in_any_order():
    wanted = study_of("drim", {"rounds": 9, "learning_rate": 0.25})
    for assignments in (
        ["model.name=drim", "training.rounds=9", "training.learning_rate=0.25"],
        ["training.learning_rate=0.25", "training.rounds=9", " model.name=drim"],
    ):
        assert study_of("mmare").override(assignments) == wanted


def test_an_override_of_something_else_leaves_the_recipe():
    study = study_of("drim")
    changed = study.override(["training.rounds=200"])
    assert changed.training.rounds == 200  # the default of all studies, said here
    assert changed.training.weight_decay == study.training.weight_decay
    assert changed.training.recipe == study.training.recipe


@pytest.mark.parametrize(("model", "name"), EVERY)
def test_choosing_the_recipe_that_is_there_changes_nothing(model, name):
    study = study_of(model, {"recipe": name, "batch_size": 3})
    assert study.override([f"training.recipe={name}"]) == study
    assert study.override([f"model.name={model}", f"training.recipe={name}"]) == study


@given(
    first=st.sampled_from(EVERY),
    second=st.sampled_from(EVERY),
    rounds=st.integers(3, 12),
    rate=st.sampled_from([0.3, 0.07]),
)
def test_changing_a_recipe_and_back_is_the_same_study(first, second, rounds, rate):
    """With values that no recipe has: those could be the study's own or the recipe's."""
    study = study_of(first[0], {"recipe": first[1], "rounds": rounds, "learning_rate": rate})
    there = study.override([f"model.name={second[0]}", f"training.recipe={second[1]}"])
    assert there == study_of(second[0], {"recipe": second[1], "rounds": rounds, "learning_rate": rate})
    assert there.override([f"model.name={first[0]}", f"training.recipe={first[1]}"]) == study
