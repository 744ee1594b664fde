"""Studies: there and back, one sentence per mistake, settings by ``--set``, and what the hash covers."""

import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import fields, is_dataclass, replace
from types import SimpleNamespace

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from mmare.errors import StudyError
from mmare.models.registry import build_model
from mmare.study.choices import (
    ExtraAnswer,
    Hazard,
    Kind,
    MaskUse,
    OptimizerName,
    OptimizerState,
    PromptMode,
    Scaling,
    Scans,
    Schedule,
    Select,
    Untouched,
    Wire,
)
from mmare.study.outcome import SurvivalSpec
from mmare.study.specs import (
    DifferentialPrivacySpec,
    FederationSpec,
    ModalitySpec,
    ModelSpec,
    PrivacySpec,
    TrainingSpec,
)
from mmare.study.start import StartSpec
from mmare.study.strategy_options import STRATEGY_OPTIONS
from mmare.study.study import Study, load_study, parse_study

# The example of DESIGN.md with a second modality and nothing left to default.
FILE = """\
[study]
name = "mmist-vital12"
classes = ["dead", "alive"]
positive = "alive"
seed = 3
[[modality]]
name = "ct"
kind = "features"
width = 512
encoder = "given"
scaling = "zscore"
[[modality]]
name = "text"
kind = "text"
width = 512
encoder = "hashing-text"
scaling = "l2"
prompt = "The patient is a {sex}[ of {race} race]."
prompt_mode = "explicit"
[model]
name = "mmare"
width = 128
conditioning = false
fusion = "mean"
order = "sample"
dropout = 0.25
[training]
rounds = 20
local_epochs = 2
optimizer = "sgd"
batch_size = 32
learning_rate = 1e-3
weight_decay = 0
optimizer_state = "reset"
patience = 5
oversample = { dead = 6.0 }
noise_probability = 0.3
[federation]
strategy = "fedavg"
min_sites = 3
deadline_s = 60
[privacy]
min_count = 10
"""
STUDY = Study(
    name="mmist-vital12",
    classes=("dead", "alive"),
    modalities=(
        ModalitySpec("ct", Kind.FEATURES, 512),
        ModalitySpec(
            "text",
            Kind.TEXT,
            512,
            "hashing-text",
            Scaling.L2,
            "The patient is a {sex}[ of {race} race].",
            PromptMode.EXPLICIT,
        ),
    ),
    positive="alive",
    seed=3,
    model=ModelSpec(
        "mmare", {"width": 128, "conditioning": False, "fusion": "mean", "order": "sample", "dropout": 0.25}
    ),
    training=TrainingSpec(
        20, 2, OptimizerName.SGD, 32, 1e-3, 0.0, OptimizerState.RESET, 5, {"dead": 6.0}, 0.3
    ),
    federation=FederationSpec("fedavg", 3, 60.0),
    privacy=PrivacySpec(10),
)
SHORT = '[study]\nname = "s"\nclasses = ["a", "b"]\n[[modality]]\nname = "ct"\nkind = "features"\nwidth = 8\n'

WORDS = st.text(min_size=1, max_size=6)
POSITIVE = st.floats(0, 1e6, exclude_min=True)


@st.composite
def modalities(draw):
    kind = draw(st.sampled_from(Kind))
    volume = kind is Kind.VOLUME
    low, high = draw(st.floats(-1e3, 0)), draw(st.floats(1, 1e3))
    return ModalitySpec(
        name=draw(WORDS),
        kind=kind,
        width=draw(st.integers(1, 4)),
        encoder=draw(st.sampled_from(["hashing-text", "some-encoder"])),
        scaling=draw(st.sampled_from(Scaling)),
        prompt=draw(st.none() | st.text(max_size=6)),
        prompt_mode=draw(st.sampled_from(PromptMode)),
        size=draw(st.sampled_from([(), (56, 448, 448)])) if volume else (),
        window=draw(st.sampled_from([(), (low, high)])) if volume else (),
        mask=draw(st.sampled_from(MaskUse)) if volume else MaskUse.NONE,
        crop_to_mask=draw(st.booleans()) if volume else False,
    )


MODALITIES = st.lists(modalities(), min_size=1, max_size=3, unique_by=lambda one: one.name).map(tuple)


@st.composite
def studies(draw):
    """Any study, its model's options known to no model."""
    classes = tuple(draw(st.lists(WORDS, min_size=2, max_size=4, unique=True)))
    weights = st.dictionaries(st.sampled_from(classes), POSITIVE, max_size=2)
    options = st.dictionaries(
        WORDS.filter(lambda key: key != "name"),
        st.booleans() | st.integers(2, 99) | st.text(max_size=6) | st.floats(0.01, 0.9),
        max_size=2,
    )
    training = st.builds(
        TrainingSpec,
        rounds=st.integers(1, 3),
        local_epochs=st.integers(1, 3),
        optimizer=st.sampled_from(OptimizerName),
        batch_size=st.integers(1, 3),
        learning_rate=POSITIVE,
        weight_decay=st.floats(0, 1),
        optimizer_state=st.sampled_from(OptimizerState),
        patience=st.integers(1, 3),
        oversample=st.none() | st.just("balanced") | weights,
        noise_probability=st.floats(0, 1),
    )
    return Study(
        name=draw(WORDS),
        classes=classes,
        modalities=draw(MODALITIES),
        positive=draw(st.none() | st.sampled_from(classes)),
        seed=draw(st.integers(0, 2**63 - 1)),
        model=ModelSpec(draw(WORDS), draw(options)),
        training=draw(training),
        federation=draw(
            st.builds(
                FederationSpec,
                strategy=st.sampled_from(sorted(set(STRATEGY_OPTIONS) - {"fedsgd"})),
                min_sites=st.integers(1, 3),
                deadline_s=POSITIVE,
            )
        ),
        privacy=PrivacySpec(draw(st.integers(0, 9))),
    )


def written(folder, text):
    path = folder / "study.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(action):
    """The one sentence of a StudyError."""
    with pytest.raises(StudyError) as caught:
        action()
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert caught.value.exit_code == 2
    return sentence


def test_a_file_is_read(tmp_path):
    assert load_study(written(tmp_path, FILE)) == STUDY


def test_a_short_file_gets_the_defaults_of_the_design(tmp_path):
    study = load_study(written(tmp_path, SHORT))
    assert study == Study("s", ("a", "b"), (ModalitySpec("ct", Kind.FEATURES, 8),))
    assert (study.seed, study.positive, study.model) == (0, None, ModelSpec("mmare", {}))
    assert (study.training.rounds, study.training.patience, study.training.batch_size) == (200, 25, 64)
    assert (study.training.learning_rate, study.training.weight_decay) == (1e-4, 1e-4)
    assert (study.federation.min_sites, study.federation.deadline_s) == (2, 600.0)
    assert study.privacy.min_count == 5


def test_positive_index():
    assert STUDY.positive_index == 1
    assert replace(STUDY, positive="dead").positive_index == 0
    assert replace(STUDY, positive=None).positive_index is None


@given(studies())
def test_a_study_survives_a_dict_round_trip(study):
    again = parse_study(study.to_dict(), source="test")
    assert again == study
    assert again.hash == study.hash


@given(studies())
def test_a_study_survives_toml_and_json(study):
    content = study.to_dict()
    assert parse_study(tomllib.loads(tomli_w.dumps(content)), source="test") == study
    assert parse_study(json.loads(json.dumps(content)), source="test") == study


@given(studies())
def test_without_settings_an_override_changes_nothing(study):
    assert study.override([]) == study


SECTIONS = ("study", "training", "federation", "privacy")
VOLUME = "modality = [{{ name = 'mri', kind = 'volume', width = 8, {} }}]"
MISTAKES = [
    # Sections
    ("[trainig]\nrounds = 1", "the file has an unknown key 'trainig'; expected one of federation, modality,"),
    ("study.extra = 1", "[study] has an unknown key 'extra'; expected one of classes, name, positive, seed"),
    ("training.epochs = 1", "[training] has an unknown key 'epochs'; expected one of batch_size,"),
    ("federation.rounds = 1", "[federation] has an unknown key 'rounds'; expected one of deadline_s,"),
    (
        "privacy.epsilon = 1",
        "[privacy] has an unknown key 'epsilon'; expected one of dp, extra, max_step, min_count",
    ),
    (
        "modality.0.dim = 8",
        "[[modality]] has an unknown key 'dim'; expected one of crop_to_mask, encoder, kind, mask, name,",
    ),
    *((f"{name} = 3", f"{name} must be a table, found 3") for name in (*SECTIONS, "model")),
    ("modality = 3", "modality must be a list of [[modality]] tables"),
    ("modality = [3]", "modality must be a list of [[modality]] tables"),
    ("modality = { name = 'ct' }", "modality must be a list of [[modality]] tables"),
    # Study
    ("study.name = del", "[study] lacks the key 'name'"),
    ("study.name = 3", "[study] name must be text, found 3"),
    ("study.name = ''", "[study] name is empty"),
    ("study.classes = del", "[study] lacks the key 'classes'"),
    ("study.classes = 'ab'", "[study] classes must be a list, found 'ab'"),
    ("study.classes = { a = 1 }", "[study] classes must be a list, found {'a': 1}"),
    ("study.classes = [0, 1]", "[study] classes must be text, found 0"),
    ("study.classes = ['a']", "[study] classes must name at least two, found ['a']"),
    ("study.classes = ['a', 'b', 'a']", "[study] classes names one class twice"),
    ("study.positive = 'c'", "[study] positive 'c' is not one of the classes"),
    ("study.positive = 1", "[study] positive must be text or absent, found 1"),
    ("study.seed = -1", "[study] seed must not be negative, found -1"),
    ("study.seed = 1.0", "[study] seed must be a whole number, found 1.0"),
    ("study.seed = true", "[study] seed must be a whole number, found True"),
    ("study.seed = 9223372036854775808", "[study] seed must be below 2**63, found 9223372036854775808"),
    # Modalities
    ("modality = []", "no [[modality]]: a study needs at least one"),
    ("modality = del", "no [[modality]]: a study needs at least one"),
    ("modality.1.name = 'ct'", "two [[modality]] tables have the same name: ['ct', 'ct']"),
    ("modality.0.name = ''", "a [[modality]] has an empty name"),
    ("modality.0.name = del", "[[modality]] lacks the key 'name'"),
    ("modality.0.kind = del", "[[modality]] lacks the key 'kind'"),
    ("modality.0.kind = 'scan'", "[[modality]] kind must be one of volume, text, features, found 'scan'"),
    ("modality.0.width = del", "[[modality]] lacks the key 'width'"),
    ("modality.0.width = '512'", "[[modality]] width must be a whole number, found '512'"),
    ("modality.0.width = 0", "[[modality]] width must be positive, found [0, 512]"),
    (
        "modality.0.scaling = 'minmax'",
        "[[modality]] scaling must be one of zscore, site, combat, l2, none, found 'minmax'",
    ),
    (
        "modality.1.prompt_mode = 'skip'",
        "[[modality]] prompt_mode must be one of omit, explicit, found 'skip'",
    ),
    ("modality.1.prompt = 1", "[[modality]] prompt must be text or absent, found 1"),
    (
        "modality.1.encoder = 'given'",
        "[[modality]] text is text and needs an encoder, such as 'hashing-text'",
    ),
    (
        "modality.0.size = [1, 2, 3]",
        "[[modality]] ct is features; size, window, mask and crop_to_mask are for volumes",
    ),
    (
        "modality.0.window = [0, 1]",
        "[[modality]] ct is features; size, window, mask and crop_to_mask are for volumes",
    ),
    (VOLUME.format("size = [8, 8]"), "[[modality]] mri size must be three positive numbers, found [8, 8]"),
    (VOLUME.format("size = [8, 8, 0]"), "[[modality]] mri size must be three positive numbers, found [8,"),
    (VOLUME.format("size = [8.0, 8, 8]"), "[[modality]] size must be a whole number, found 8.0"),
    (VOLUME.format("window = [0]"), "[[modality]] mri window must be a lower and a higher number, found"),
    (VOLUME.format("window = [1, 0]"), "[[modality]] mri window must be a lower and a higher number, found"),
    (VOLUME.format("window = [0, nan]"), "[[modality]] window must be a number, found nan"),
    # Model: its options are checked when it is built, but they must be able to travel
    ("model.name = 3", "[model] name must be text, found 3"),
    ("model.width = 2024-01-01", "[model] may hold texts, finite numbers, lists and tables only"),
    ("model.dropout = nan", "[model] may hold texts, finite numbers, lists and tables only"),
    ("model.deep = { er = [inf] }", "[model] may hold texts, finite numbers, lists and tables only"),
    # Training
    ("training.rounds = 0", "[training] rounds must be at least 1, found 0"),
    ("training.rounds = 1.5", "[training] rounds must be a whole number, found 1.5"),
    ("training.local_epochs = 0", "[training] local_epochs must be at least 1, found 0"),
    ("training.batch_size = 0", "[training] batch_size must be at least 1, found 0"),
    ("training.optimizer = 'lion'", "[training] optimizer must be one of adam, adamw, sgd, found 'lion'"),
    (
        "training.optimizer_state = 'drop'",
        "[training] optimizer_state must be one of keep, reset, found 'drop'",
    ),
    ("training.learning_rate = nan", "[training] learning_rate must be a number, found nan"),
    ("training.learning_rate = inf", "[training] learning_rate must be a number, found inf"),
    ("training.learning_rate = 0", "[training] learning_rate must be positive, found 0"),
    ("training.learning_rate = '1e-4'", "[training] learning_rate must be a number, found '1e-4'"),
    ("training.weight_decay = -1e-4", "[training] weight_decay must not be negative, found -0.0001"),
    ("training.patience = 0", "[training] patience must be at least 1, found 0"),
    ("training.noise_probability = 1.5", "[training] noise_probability must be between 0 and 1, found 1.5"),
    ("training.noise_probability = -0.1", "[training] noise_probability must be between 0 and 1"),
    (
        "training.oversample = 'equal'",
        "[training] oversample must be a table of weights or 'balanced', found",
    ),
    ("training.oversample = 6", "[training] oversample must be a table or text or absent, found 6"),
    ("training.oversample = { lost = 2 }", "[training] oversample names a class that is not one: ['lost']"),
    (
        "training.oversample = { dead = 0 }",
        "[training] oversample weights must be positive, found {'dead': 0.0}",
    ),
    (
        "training.oversample = { dead = nan }",
        "[training] oversample must be a table or text or absent, found",
    ),
    # Federation and privacy
    ("federation.strategy = 1", "[federation] strategy must be text, found 1"),
    ("training.clip_norm = -1", "[training] clip_norm must not be negative, found -1"),
    (
        "training.modality_dropout = 1.0",
        "[training] modality_dropout must be at least 0 and below 1, found 1.0",
    ),
    (
        "training.modality_dropout = {pet = 0.5}",
        "[training] modality_dropout names a modality that is not one",
    ),
    ("training.distillation = 1.0", "[training] distillation needs modality_dropout: nothing is hidden"),
    ("training.recipe = 'secret'", "[training] recipe of mmare must be one of"),
    ("federation.local = ['tail']", "[federation] local may name adapters, head, norms, found ['tail']"),
    ("federation.strategy = 'fedsum'", "[federation] strategy must be one of exposure, fedadam,"),
    ("federation.options = {mu = 1.0}", "[federation] options of fedavg has an unknown key 'mu'"),
    ("federation.min_sites = 0", "[federation] min_sites must be at least 1, found 0"),
    ("federation.deadline_s = 0", "[federation] deadline_s must be positive, found 0"),
    ("federation.deadline_s = inf", "[federation] deadline_s must be a number, found inf"),
    ("privacy.max_step = 0", "[privacy] max_step must be positive, found 0.0"),
    ("privacy.min_count = -1", "[privacy] min_count must not be negative, found -1"),
    ("privacy.min_count = 5.0", "[privacy] min_count must be a whole number, found 5.0"),
]


def with_mistake(change):
    """The tables of FILE with one change: ``path = value`` in TOML, ``del`` for taking away."""
    content = tomllib.loads(FILE)
    if change.startswith("["):
        return content | tomllib.loads(change)
    path, _, value = change.partition(" = ")
    *parents, last = path.split(".")
    table = content
    for key in parents:
        table = table[int(key) if key.isdigit() else key]
    if value == "del":
        del table[last]
    else:
        table[last] = tomllib.loads(f"value = {value}")["value"]
    return content


@pytest.mark.parametrize(("change", "sentence"), MISTAKES, ids=[change for change, _ in MISTAKES])
def test_a_mistake_is_one_sentence_that_names_the_file(change, sentence, tmp_path):
    path = written(tmp_path, tomli_w.dumps(with_mistake(change)))
    assert refusal(lambda: load_study(path)).startswith(f"{path}: {sentence}")


def test_the_file_without_a_mistake_is_good():
    """Else the cases above could all fail for another reason."""
    assert parse_study(with_mistake("study.seed = 3"), source="test") == STUDY


def test_a_file_that_does_not_exist(tmp_path):
    path = tmp_path / "study.toml"
    assert refusal(lambda: load_study(path)) == f"{path}: no such study file"


def test_a_directory_is_no_file(tmp_path):
    assert refusal(lambda: load_study(tmp_path)) == f"{tmp_path}: cannot be read (IsADirectoryError)"


def test_bytes_that_are_not_utf8(tmp_path):
    path = tmp_path / "study.toml"
    path.write_bytes(FILE.encode("utf-16"))
    assert refusal(lambda: load_study(path)) == f"{path}: cannot be read (UnicodeDecodeError)"


def test_text_that_is_not_toml(tmp_path):
    path = written(tmp_path, "[study]\nname = mmist\n")
    assert refusal(lambda: load_study(path)).startswith(f"{path}: not valid TOML: ")
    assert "line 2" in refusal(lambda: load_study(path))


def test_an_empty_file(tmp_path):
    path = written(tmp_path, "")
    assert refusal(lambda: load_study(path)) == f"{path}: [study] lacks the key 'name'"


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        pytest.param(
            {"positive": "lost"}, "[study] positive 'lost' is not one of the classes", id="positive"
        ),
        pytest.param({"seed": -1}, "[study] seed must not be negative, found -1", id="seed"),
        pytest.param(
            {"training": TrainingSpec(learning_rate=float("nan"))},
            "[training] learning_rate must be positive, found nan",
            id="learning rate",
        ),
        pytest.param({"modalities": ()}, "no [[modality]]: a study needs at least one", id="modalities"),
    ],
)
def test_a_study_made_in_code_is_checked_too(part, sentence):
    assert refusal(lambda: replace(STUDY, **part)) == sentence


OVERRIDES = [
    ("training.rounds=5", replace(STUDY, training=replace(STUDY.training, rounds=5))),
    (" training.rounds = 5 ", replace(STUDY, training=replace(STUDY.training, rounds=5))),
    ("training.learning_rate=1", replace(STUDY, training=replace(STUDY.training, learning_rate=1.0))),
    (
        "training.optimizer=adam",
        replace(STUDY, training=replace(STUDY.training, optimizer=OptimizerName.ADAM)),
    ),
    (
        'training.optimizer="adam"',
        replace(STUDY, training=replace(STUDY.training, optimizer=OptimizerName.ADAM)),
    ),
    (
        "training.oversample=balanced",
        replace(STUDY, training=replace(STUDY.training, oversample="balanced")),
    ),
    (
        "training.oversample={alive=2}",
        replace(STUDY, training=replace(STUDY.training, oversample={"alive": 2.0})),
    ),
    (
        "training.oversample.alive=2",
        replace(STUDY, training=replace(STUDY.training, oversample={"dead": 6.0, "alive": 2.0})),
    ),
    ("study.seed=9", replace(STUDY, seed=9)),
    ("study.name=again", replace(STUDY, name="again")),
    ("study.positive=dead", replace(STUDY, positive="dead")),
    (
        'study.classes=["alive", "lost", "dead"]',
        replace(STUDY, classes=("alive", "lost", "dead")),
    ),
    ("model.width=64", replace(STUDY, model=ModelSpec("mmare", STUDY.model.options | {"width": 64}))),
    ("model.order=fixed", replace(STUDY, model=ModelSpec("mmare", STUDY.model.options | {"order": "fixed"}))),
    ("federation.deadline_s=1.5", replace(STUDY, federation=replace(STUDY.federation, deadline_s=1.5))),
    ("privacy.min_count=0", replace(STUDY, privacy=PrivacySpec(0))),
    (
        "modality.ct.scaling=none",
        replace(STUDY, modalities=(replace(STUDY.modalities[0], scaling=Scaling.NONE), STUDY.modalities[1])),
    ),
    (
        "modality.text.prompt=A {sex}, aged {age}=x.",
        replace(
            STUDY,
            modalities=(STUDY.modalities[0], replace(STUDY.modalities[1], prompt="A {sex}, aged {age}=x.")),
        ),
    ),
]


@pytest.mark.parametrize(("assignment", "expected"), OVERRIDES, ids=[text for text, _ in OVERRIDES])
def test_a_setting_changes_its_key_only(assignment, expected):
    assert STUDY.override([assignment]) == expected
    assert STUDY.to_dict() == parse_study(tomllib.loads(FILE), source="test").to_dict()


def test_settings_apply_in_order_and_a_later_one_wins():
    found = STUDY.override(["training.rounds=5", "training.patience=2", "training.rounds=7"])
    assert (found.training.rounds, found.training.patience) == (7, 2)


def test_settings_are_checked_together():
    """The first alone would contradict the study."""
    found = STUDY.override(["study.positive=lost", 'study.classes=["lost", "dead"]'])
    assert found.positive_index == 0


def test_nested_options_of_the_original_stay():
    study = replace(STUDY, model=ModelSpec("other", {"deep": {"er": 1}}))
    found = study.override(["model.deep.er=2"])
    assert (found.model.options, study.model.options) == ({"deep": {"er": 2}}, {"deep": {"er": 1}})


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("rounds=5", "--set 'rounds=5': expected section.key=value, such as training.rounds=5"),
        ("training.rounds", "--set 'training.rounds': expected section.key=value"),
        ("", "--set '': expected section.key=value"),
        ("=5", "--set '=5': expected section.key=value"),
        ("trainig.rounds=5", "--set 'trainig.rounds=5': there is no section 'trainig'"),
        ("training.rounds.x=5", "--set 'training.rounds.x=5': there is no section 'rounds'"),
        ("modality.ct=5", "--set 'modality.ct=5': expected modality.NAME.key=value"),
        ("modality.mri.width=5", "--set 'modality.mri.width=5': there is no section 'mri'"),
        ("modality.ct.dim=5", "--set: [[modality]] has an unknown key 'dim'"),
        ("modality.ct.name=text", "--set: two [[modality]] tables have the same name"),
        ("training.epochs=5", "--set: [training] has an unknown key 'epochs'"),
        ("training.rounds=many", "--set: [training] rounds must be a whole number, found 'many'"),
        ("training.rounds=", "--set: [training] rounds must be a whole number, found ''"),
        ("training.rounds=0", "--set: [training] rounds must be at least 1"),
        ("training.learning_rate=nan", "--set: [training] learning_rate must be a number, found nan"),
        ("study.positive=lost", "--set: [study] positive 'lost' is not one of the classes"),
    ],
)
def test_an_invalid_setting_is_one_sentence(assignment, sentence):
    assert refusal(lambda: STUDY.override([assignment])).startswith(sentence)


SCANS = replace(
    STUDY,
    # Scaling, training noise and dropout so that dp alone, or distillation alone, can be changed.
    modalities=(ModalitySpec("ct", Kind.VOLUME, 512, "med3d", Scaling.NONE), STUDY.modalities[1]),
    training=replace(STUDY.training, modality_dropout=0.1, noise_probability=0.0),
)
# Differs from SCANS in every field; a new field of a study must be given another value here.
OTHER = SimpleNamespace(
    name="other",
    classes=("alive", "dead"),
    modalities=(
        ModalitySpec(
            "mri",
            Kind.TEXT,
            8,
            "m3d",
            Scaling.L2,
            "A",
            PromptMode.EXPLICIT,
            size=(4, 5, 6),
            window=(-1.0, 1.0),
            mask=MaskUse.STRIP,
            crop_to_mask=True,
            scans=Scans.MEAN,
        ),
    ),
    positive="dead",
    seed=4,
    model=ModelSpec("unimodal", {"width": 8}),
    training=TrainingSpec(
        21,
        3,
        OptimizerName.ADAM,
        33,
        2e-3,
        0.1,
        OptimizerState.KEEP,
        6,
        {"alive": 2.0},
        0.4,
        "other",
        Schedule.COSINE,
        2.0,
        Select.AUC,
        0.5,
        0.25,
    ),
    federation=FederationSpec(
        "fedprox", 4, 61.0, {"weighting": "exposure"}, ("norms",), Wire.FLOAT16, Untouched.DRIFT, 5.0, 0.5
    ),
    privacy=PrivacySpec(11, (ExtraAnswer.SUBSETS,), 3.0, True, DifferentialPrivacySpec(8.0)),
    start=StartSpec("0" * 64),
)


SURVIVAL = {
    "study": {"name": "s", "task": "survival"},
    "survival": {"follow_up": 120.0},
    "modality": [{"name": "ct", "kind": "features", "width": 2, "scaling": "l2"}],
}


def survival(**tables):
    return {
        name: {**SURVIVAL.get(name, {}), **tables.get(name, {})}
        for name in {*SURVIVAL, *tables} - {"modality"}
    } | {"modality": SURVIVAL["modality"]}


def test_a_study_of_times_goes_there_and_back():
    study = parse_study(SURVIVAL, "test")
    assert (study.task, study.classes, study.training.select) == ("survival", ("censored", "event"), "loss")
    assert parse_study(tomllib.loads(tomli_w.dumps(study.to_dict())), "test") == study
    assert study.override(["survival.intervals=5"]).survival.intervals == 5
    assert "classes" not in study.to_dict()["study"]


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        ({"study": {"task": "survival of the fittest"}}, "task must be one of classification, survival"),
        ({"study": {"classes": ["a", "b"]}}, "classes are of task classification, found task survival"),
        ({"study": {"positive": "event"}}, "positive is of task classification"),
        ({"survival": {"follow_up": 0}}, "follow_up must be a positive number of months, found 0"),
        ({"survival": {"intervals": 1}}, "intervals must be between 2 and 64, found 1"),
        ({"survival": {"unit": ""}}, "unit is empty"),
        ({"survival": {"horizons": [12, 120]}}, "a horizon of 120 months, expected one above 0 and before"),
        ({"survival": {"horizons": [0]}}, "a horizon of 0 months"),
        (
            {"training": {"select": "auc"}},
            "select of task survival must be one of loss, concordance, worst_site",
        ),
        (
            {"training": {"oversample": "balanced"}},
            "oversample is of classes: of task survival it would shift",
        ),
        ({"privacy": {"dp": {"epsilon": 8}}}, "dp has no noise for the metrics of task survival yet"),
        ({"privacy": {"extra": ["calibration"]}}, "extra calibration is of predicted classes"),
        ({"privacy": {"extra": ["comparison"]}}, "extra comparison is of predicted classes"),
    ],
)
def test_mistakes_in_a_study_of_times(tables, sentence):
    with pytest.raises(StudyError, match=re.escape(sentence)):
        parse_study(survival(**tables), "test")


def test_times_belong_to_their_task():
    with pytest.raises(StudyError, match="belong together, found task classification"):
        parse_study({**SURVIVAL, "study": {"name": "s", "classes": ["a", "b"]}}, "test")


def one_change_each(base, other, path=""):
    """Every (path, copy of ``base``) that has one field, however deep, from ``other``."""
    for part in fields(base):
        if part.name in {"task", "survival", "regression"}:  # neither can be changed alone
            continue
        mine, theirs = getattr(base, part.name), getattr(other, part.name)
        where = f"{path}{part.name}"
        assert mine != theirs, f"OTHER must differ in {where}"
        if is_dataclass(mine):
            inner = one_change_each(mine, theirs, f"{where}.")
        elif part.name == "modalities":
            inner = [("modalities: order", mine[::-1]), ("modalities: fewer", mine[:1])]
            changed = one_change_each(mine[0], theirs[0], f"{where}.0.")
            inner += [(name, (first, *mine[1:])) for name, first in changed]
        else:
            inner = [(where, theirs)]
        for name, value in inner:
            yield name, replace(base, **{part.name: value})


CHANGED = dict(one_change_each(SCANS, OTHER))


def test_scans_of_a_study_before_there_were_several_have_its_hash():
    assert "scans" not in STUDY.to_dict()["modality"][0]
    with pytest.raises(StudyError, match="is text, of which scans must be one"):
        replace(STUDY, modalities=(ModalitySpec("n", Kind.TEXT, 8, "hashing-text", scans=Scans.MEAN),))


def test_a_start_model_is_named_by_its_digest():
    study = replace(STUDY, start=StartSpec("5" * 64))
    assert parse_study(tomllib.loads(tomli_w.dumps(study.to_dict())), "test") == study
    with pytest.raises(
        StudyError, match=re.escape("[start] digest must be 64 hexadecimal digits, found 'x'")
    ):
        replace(STUDY, start=StartSpec("x"))


@pytest.mark.parametrize(
    "change",
    [{"follow_up": 60.0}, {"intervals": 5}, {"unit": "days"}, {"horizons": (12.0,)}, {"hazard": Hazard.COX}],
)
def test_the_hash_covers_task_and_times(change):
    study = parse_study(SURVIVAL, "test")
    assert set(change) <= {part.name for part in fields(SurvivalSpec)}
    other = replace(study, survival=replace(study.survival, **change))
    assert len({study.hash, other.hash, STUDY.hash}) == 3


def test_cox_needs_the_rows_of_some_modality():
    study = parse_study({**SURVIVAL, "survival": {**SURVIVAL["survival"], "hazard": "cox"}}, "test")
    names = [each.name for each in study.modalities]
    with pytest.raises(
        StudyError, match="hazard cox needs a number of rows, which scaling site of all hides"
    ):
        study.override([f"modality.{name}.scaling=site" for name in names])


def test_every_field_of_times_is_changed():
    assert [part.name for part in fields(SurvivalSpec)] == [
        "follow_up",
        "intervals",
        "unit",
        "horizons",
        "hazard",
    ]


@pytest.mark.parametrize("path", CHANGED)
def test_the_hash_covers_every_field_but_seed_and_name(path):
    assert (CHANGED[path].hash == SCANS.hash) == (path in {"seed", "name"})


def test_every_option_of_the_model_is_in_the_hash():
    for key in STUDY.model.options:
        rest = {name: value for name, value in STUDY.model.options.items() if name != key}
        assert replace(STUDY, model=ModelSpec("mmare", rest)).hash != STUDY.hash


def apart_from_seed_and_name(study):
    return replace(study, seed=0, name="any")


@given(studies(), studies(), st.sampled_from(["", "seed", "name", "model", "modalities", "privacy"]))
def test_hashes_are_equal_exactly_for_equal_content(one, other, part):
    if part:
        other = replace(one, **{part: getattr(other, part)})
    equal = apart_from_seed_and_name(one).to_dict() == apart_from_seed_and_name(other).to_dict()
    assert (one.hash == other.hash) == equal


def test_the_hash_does_not_depend_on_the_order_of_keys():
    backwards = dict(reversed(STUDY.model.options.items()))
    assert replace(STUDY, model=ModelSpec("mmare", backwards)).hash == STUDY.hash
    content = dict(reversed(STUDY.to_dict().items()))
    assert parse_study(content, source="test").hash == STUDY.hash


def test_a_whole_number_written_as_a_float_is_the_same_setting():
    """A study made in code with ``deadline_s=60`` must be the one that a site reads as 60.0."""
    in_code = replace(
        STUDY,
        federation=FederationSpec("fedavg", 3, 60),
        training=replace(STUDY.training, oversample={"dead": 6}, weight_decay=0),
    )
    assert in_code.hash == STUDY.hash == parse_study(in_code.to_dict(), source="test").hash


def test_true_and_one_are_not_the_same_setting():
    one, true = (replace(STUDY, model=ModelSpec("mmare", {"x": value})) for value in (1, True))
    assert one.hash != true.hash


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_the_hash_is_the_same_in_every_process(hash_seed, tmp_path):
    code = f"from mmare.study.study import *; print(load_study(Path({str(written(tmp_path, FILE))!r})).hash)"
    found = subprocess.run(
        [sys.executable, "-c", f"from pathlib import Path; {code}"],
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == STUDY.hash
    assert len(STUDY.hash) == 64


def test_a_study_that_is_read_can_be_built(tmp_path):
    model = build_model(load_study(written(tmp_path, FILE)))
    assert model.modality_names == ("ct", "text")
    assert model.classes == 2
