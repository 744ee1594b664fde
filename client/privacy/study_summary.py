"""A summary of a study for the person who approves it: what is computed, released and never released."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

from client.privacy.masker import Masker
from client.privacy.records.ledger import ledger_of
from client.privacy.release_rules import StudyRules
from mmare.host.console import visible
from mmare.package.start import installed_start
from mmare.study.choices import ExtraAnswer, Kind, PromptMode, Scaling, Wire
from mmare.wire.sharing import steps_at_coordinator

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from mmare.study.specs import ModalitySpec
    from mmare.study.study import Study
    from sites.config import SiteConfig

__all__ = ["study_in_words"]

WIDTH = 100  # columns

_HELD = {
    Kind.VOLUME: "scans, encoded once on this machine",
    Kind.TEXT: "texts made of the manifest's columns, encoded on this machine",
    Kind.FEATURES: "precomputed numbers",
}
_TELLS = "What it can tell about a patient: "  # each sentence is a measurement of tests/privacy, or of LiRA
_EXTRA = {
    ExtraAnswer.SUBSETS: (
        "At the end: the same for every subset of modalities, the others hidden.",
        "as the metrics, once for each subset; the differences show what a modality says of a patient who "
        "stands alone in a bin.",
    ),
    ExtraAnswer.COMPARISON: (
        "If two models are compared: per class, how many test rows both, one or neither predicted right.",
        "of a class with few test rows, or with nearly all in one cell, how the models judge each of them.",
    ),
    ExtraAnswer.TRAIN: (
        "In every round and at the end: the same counts and sums over the train rows.",
        "a model judges the rows that it learned from better, so these say more about who was among them.",
    ),
    ExtraAnswer.CALIBRATION: (
        "At the end: over the validation and the test rows, per true class, sums of losses at about a "
        "thousand settings of a calibration.",
        "together they show the model's judgement of each row of a small class, without saying of whom; "
        "where a smallest group is set, only mean and spread of at least so many neighbouring rows.",
    ),
    ExtraAnswer.SHAPLEY: (
        "At the end: for each modality, over the test rows that have it, their number and the sum of its "
        "absolute Shapley values: by how much it moves the predicted probabilities.",
        "of a modality that one test row has, by how much it moved the model's prediction; where a smallest "
        "group is set, only sums over at least so many rows, where none or at least so many lack it.",
    ),
}


def study_in_words(study: Study, site: SiteConfig, max_releases: int, seeds: Collection[int] = ()) -> str:
    """What approving a study, for at most ``max_releases`` answers and more ``seeds``, means for a site.

    Raises:
        StudyError: If the study's model does not exist or cannot serve it.
    """
    limit = max(site.min_count, study.privacy.min_count)
    lines = [visible(f"Study {study.name}, hash {study.hash}"), "", "What will be computed on this machine"]
    lines += _listed(_computed(study, site))
    lines += ["", "What will leave"]
    lines += _listed((*_masked(study, site), *_priced(study, site)))
    leaving = _leaving if study.privacy.dp is None else _leaving_with_noise
    for sentence, tells in leaving(study, StudyRules(study), limit):
        lines += [*_listed((sentence,)), _filled(_TELLS + tells, "    ")] if tells else _listed((sentence,))
    lines += ["", "What holds it back"]
    lines += _listed(_limits(study, site, limit, max_releases, sorted({study.seed, *seeds})))
    lines += ["", "What never leaves as it is"]
    lines += _listed(
        (
            "A row, a scan, a text, an embedding, a patient's id, a path or a file name. Of an error only a "
            "code such as S201 leaves; the detail stays in the log of this machine.",
        )
    )
    return "\n".join(lines)


def _masked(study: Study, site: SiteConfig) -> Iterator[str]:
    """What secure sums change about what leaves."""
    if study.privacy.secure_sum:
        named = f"those of {', '.join(map(visible, sorted(site.peers)))}" if site.peers else "none so far"
        yield (
            "Masked: of all numbers below the coordinator learns only the sum over at least "
            f"{study.federation.min_sites} sites, no count, metric or parameter of this site alone. It could "
            "pretend to be the other sites: compare keys with them by phone and name theirs under [peers] in "
            f"site.toml ({named}). The key of this site is {Masker(site.id, site.folder).public_key}."
        )


def _priced(study: Study, site: SiteConfig) -> Iterator[str]:
    """What differential privacy promises, and what of the site's budget it costs."""
    if study.privacy.dp is None:
        return
    ledger, dp = ledger_of(site), study.privacy.dp
    left = "it has no limit" if ledger.left is None else f"{ledger.left:g} of {ledger.limit:g} are left"
    yield (
        "With noise: all answers of a run together change the odds that a given patient was among the rows "
        f"by a factor of at most {math.exp(dp.epsilon):,.3g} (epsilon {dp.epsilon:g}), whatever is known "
        f"already, except with a probability of {dp.delta:g}. A patient is a row of the table: who has "
        f"several is protected less. Each run costs {dp.epsilon:g} of this site's budget, of which "
        f"{ledger.spent:g} is spent; {left}."
    )


def _leaving_with_noise(study: Study, rules: StudyRules, limit: int) -> Iterator[tuple[str, str]]:
    """What leaves under differential privacy."""
    allowed = "of one patient, what the factor above allows."
    yield (
        "Before a run: the versions of software and encoders, and the number of train rows in tens, or that "
        f"they are fewer than {max(limit, 1)}.",
        "how many patients there are, which is taken as public: the noise shows it, too.",
    )
    yield (
        f"In every round: up to {rules.most_numbers():,} parameters of the model "
        f"({rules.most_bytes() / 1e6:.1f} MB), the L2 norm of their change, and durations in seconds. Each "
        "step draws patients at random, limits what each of them changes, and adds noise to every "
        "parameter.",
        f"{allowed} Durations have no noise.",
    )
    yield (
        "After the last round and at the end: per true class, histograms of predicted probability in ten "
        "bins with noise in each, from which metrics are computed. They are of validation and test rows, "
        "other patients than those trained on.",
        allowed,
    )
    yield "Not sent: counts per class or pattern, moments, exposures, the loss over the train rows.", ""
    if study.federation.local:
        yield f"Not sent: {', '.join(study.federation.local)} of the model, which stay at this site.", ""


def _computed(study: Study, site: SiteConfig) -> Iterator[str]:
    training = study.training
    yield (
        f"A model ({study.model.name}) learns to {_learned(study)}: up to "
        f"{training.rounds} rounds, in each {training.local_epochs} pass(es) over the train rows of "
        f"{site.manifest.name}, and "
        "predictions for the validation and test rows."
    )
    for modality in study.modalities:
        yield f"From {modality.name}: {_modality(modality, site)}."
        if modality.scaling.is_own and modality.name in site.modalities:
            yield _scaled(modality)
        if modality.prompt is not None and modality.name in site.modalities:
            yield _prompt(modality, site)


def _learned(study: Study) -> str:
    spec, ends = study.survival, study.regression
    if ends is not None:
        return f"predict a number from {ends.low:g} to {ends.high:g} {ends.unit}".rstrip()
    if spec is None:
        return f"tell {' from '.join(study.classes)}"
    return f"predict the time to an event, up to {spec.follow_up:g} {spec.unit}"


def _modality(modality: ModalitySpec, site: SiteConfig) -> str:
    if modality.name not in site.modalities:
        return "nothing; this site does not have it"
    columns = site.modalities[modality.name].columns
    used = f" ({', '.join(columns)})" if columns else ""
    return f"{_HELD[modality.kind]}{used}, {modality.width} numbers per patient"


def _scaled(modality: ModalitySpec) -> str:
    shrunk = " and, in part, of all sites (ComBat)" if modality.scaling is Scaling.COMBAT else ""
    return (
        f"{modality.name} is scaled by mean and deviation of this site's own train rows{shrunk}. They stay "
        "in the cache here, and without them the finished model cannot predict."
    )


def _prompt(modality: ModalitySpec, site: SiteConfig) -> str:
    if not site.modalities[modality.name].columns:
        return f"The study's prompt for {modality.name} is not used: this site has finished texts."
    mode = (
        "says so" if modality.prompt_mode is PromptMode.EXPLICIT else "is left out with the [group] it is in"
    )
    return (
        f"A text of {modality.name} is made by this prompt, where {{name}} is the value of a column and what "
        f'is missing {mode}: "{modality.prompt}"'
    )


def _leaving(study: Study, rules: StudyRules, limit: int) -> Iterator[tuple[str, str]]:
    """What leaves, and what each can tell about a patient."""
    groups = "" if limit <= 1 else f" Groups of fewer than {limit} are withheld."
    yield (
        "Before a run: the number of patients per split and class and per pattern of modalities, and the "
        f"versions of software and encoders.{groups}",
        "how common this kind of patient is here; two answers between which one patient came or left tell in "
        "which groups that patient is. A smallest group does not prevent this.",
    )
    own = ", ".join(each.name for each in study.modalities if each.scaling is Scaling.SITE)
    yield (
        f"Before a run: per modality{f' but {own}' if own else ''}, the number of train rows that have it, "
        f"and over them the sum and the sum of squares of each number of the embedding.{groups}",
        "from one answer, nothing but averages; the difference of two answers between which one patient came "
        "or left is that patient's embedding, exactly, from which age, sex or diagnosis may be guessed.",
    )
    if study.survival is not None:
        yield (
            "Before a run: the number of events among the train rows by time, in neighbouring bins that hold "
            f"at least {max(limit, 1)} together, from which the intervals of the model are cut.",
            "when an event happened, to a 128th of the follow-up where a bin holds one patient, without "
            "saying of whom.",
        )
    kind, surely = "the change of " if study.federation.wire is Wire.FLOAT16 else "", ""
    if steps_at_coordinator(study):
        kind = "the mean gradient, over the train rows, of "
        surely = (
            " Where fewer train patients have a modality than it has numbers, a gradient tells whoever knows "
            "a patient's numbers for certain (measured: right for 100 of 100 pairs)."
        )
    yield (
        f"In every round: {kind}up to {rules.most_numbers():,} parameters of the model "
        f"({rules.most_bytes() / 1e6:.1f} MB) with the number of draws of train rows that exercised each "
        "block, the mean loss over the train rows, the L2 norm of the change, and durations in seconds. "
        "Parameters are learned from patients, and no noise is added to them.",
        "whether this patient was among the train rows: hardly for most, often in a rare class (measured: a "
        "guess that is right for 52 to 54 of 100 pairs, for 60 to 95 in rare classes). A block that one "
        "patient alone exercised holds that patient's embedding, and the number of draws tells who lacks a "
        "modality. Out of one update of a model made to spy, a third of the embeddings could be read."
        f"{surely}",
    )
    yield (
        f"In every round and at the end: {_scored(study)} and sums of losses, from which metrics are "
        f"computed; at the end also per pattern of modalities.{groups}",
        "the model's judgement of single patients, without saying of whom: a third to half of a class stands "
        "alone in its bin of the histogram.",
    )
    yield from (_EXTRA[each] for each in study.privacy.extra)
    if study.federation.local:
        yield f"Not sent: {', '.join(study.federation.local)} of the model, which stay at this site.", ""


def _scored(study: Study) -> str:
    if study.regression is not None:
        return "the number of rows, of targets and predictions the sums, sums of squares and of products"
    if study.survival is None:
        return "per true class, counts, histograms of predicted probability"
    return "with and without the event, counts by time and predicted risk, sums of predicted curves by time"


def _limits(study: Study, site: SiteConfig, limit: int, max_releases: int, seeds: list[int]) -> Iterator[str]:
    if limit > 1:
        yield f"The smallest group disclosed has {limit} rows: the stricter limit of study and site."
    else:
        yield "Groups of any size are disclosed: neither study nor site sets a limit ([policy] min_count)."
    limits = [most for most in (site.max_norm, study.federation.max_norm) if most]
    if limits:
        yield f"An update may change the model by a length (L2 norm) of at most {min(limits):g}."
    else:
        yield "An update may change the model by any finite length ([policy] max_norm sets a limit)."
    yield (
        f"At most {max_releases:,} answers are released from now on; then the study must be approved again. "
        "Each is a line in the audit log."
    )
    yield (
        "A study that differs in anything but its name is a different study and is refused; so is a run with "
        f"another seed than {', '.join(map(str, seeds))}."
    )
    begins = "the one that the seed gives"
    if study.start is not None:
        begins = f"what fits of the start model {study.start.digest}, which {_kept(study, site)}"
    most = study.privacy.max_step
    step = "a hundred full steps of Adam an epoch" if most is None else f"a length (L2 norm) of {most:g}"
    yield (
        "Nothing is answered that this study does not call for, and no round twice: a resumed run may repeat "
        f"only the identical request. The first model is {begins}; a round moves it by at most {step}."
    )


def _kept(study: Study, site: SiteConfig) -> str:
    """Whether the site has the study's start model, and where that comes from."""
    assert study.start is not None  # noqa: S101 - the caller checked
    found = installed_start(site.folder, study.start.digest)
    if found is None:
        return "mmare-site install has not put here yet: until then nothing is answered (S311)"
    learned = ", ".join(each.name for each in found.study.modalities)
    return f"is installed here: run {found.run} of study {found.study.name} trained it on {learned}"


def _listed(sentences: Iterator[str] | tuple[str, ...]) -> list[str]:
    return [_filled(sentence, "  - ") for sentence in sentences]


def _filled(sentence: str, start: str) -> str:
    """Lines of at most `WIDTH` columns, without anything that a terminal would hide or obey."""
    return textwrap.fill(visible(sentence), WIDTH, initial_indent=start, subsequent_indent="    ")
