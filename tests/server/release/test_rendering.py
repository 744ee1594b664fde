"""One card, rendered for different readers; what is unknown stays not stated."""

import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import yaml

from mmare.package.package import read_package
from server.release.card import Statements
from server.release.decide import PointRule, Rule, decide
from server.release.finished_run import load_finished
from server.release.release import release_model
from server.release.rendering import renderings
from server.release.tripod import checklist
from tests.packages import table_run

# Children of each element in their order, ? may be absent, all leaves are strings without attributes: version
# v0.2 of https://mc.chai.org/v0.2/schema.xsd, coalition-for-health-ai/mc-schema at 2ae5a915.
SCHEMA = {
    "AppliedModelCard": "BasicInfo ReleaseInfo ModelSummary UsesAndDirections Warnings TrustIngredients "
    "KeyMetrics Resources Bibliography",
    "BasicInfo": "ModelName ModelDeveloper DeveloperContact",
    "ReleaseInfo": "ReleaseStage ReleaseDate ReleaseVersion GlobalAvailability EHRCompatibility? "
    "RegulatoryApproval?",
    "ModelSummary": "Summary Keywords",
    "UsesAndDirections": "IntendedUseAndWorkflow PrimaryIntendedUsers HowToUse TargetedPatientPopulation "
    "CautionedOutOfScopeSettings",
    "Warnings": "KnownRisksAndLimitations KnownBiasesOrEthicalConsiderations ClinicalRiskLevel",
    "TrustIngredients": "AISystemFacts TransparencyInformation",
    "AISystemFacts": "OutcomesAndOutputs ModelType FoundationModels? InputDataSource OutputAndInputDataTypes "
    "DevelopmentDataCharacterization BiasMitigationApproaches OngoingMaintenance Security? Transparency?",
    "TransparencyInformation": "FundingSource ThirdPartyInformation? StakeholdersConsulted",
    "KeyMetrics": "UsefulnessUsabilityEfficacy FairnessEquity SafetyReliability",
    **dict.fromkeys(
        ("UsefulnessUsabilityEfficacy", "FairnessEquity", "SafetyReliability"),
        "MetricGoal Results Interpretation TestType TestingDataDescription ValidationProcessAndJustification",
    ),
    "MetricResult": "Label ValueJson",
    "Resources": "EvaluationReferences? ClinicalTrial? PeerReviewedPublications ReimbursementStatus? "
    "PatientConsentOrDisclosure",
}
SPACE = "{https://mc.chai.org/v0.2/schema.xsd}"
HOSTILE = '</title><script>alert(1)</script> | *bold* "quoted" \x00\x1b[2J'


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return table_run(tmp_path_factory.mktemp("tables"))


@pytest.fixture(scope="module")
def package(run):
    stated = Statements(licence="Apache-2.0", title=HOSTILE, intended_use=HOSTILE)
    lines = [f"{key} = {json.dumps(value)}" for key, value in vars(stated).items() if value != "not stated"]
    (run.parent / "card.toml").write_text("\n".join(lines))
    rule = PointRule(Rule.YOUDEN)
    release_model(run, run.parent / "model", card=run.parent / "card.toml", rule=rule)
    return read_package(run.parent / "model")


def text(package, name):
    return package.sealed.files[name].decode()


def test_the_readme_has_front_matter_of_the_run(package):
    _, front, body = text(package, "README.md").split("---\n", 2)
    found = yaml.safe_load(front)
    assert found["license"] == "apache-2.0"
    (result,) = found["model-index"][0]["results"]
    values = {each["type"]: each["value"] for each in result["metrics"]}
    pooled = package.results["metrics"]["test"]["pooled"]
    assert values["auc"] == round(pooled["auc"], 4)
    assert values["ece"] == round(pooled["ece"], 4)
    assert "Research use, not for clinical decisions" in body
    assert "Population**: not stated" in body
    rows = [line for line in body.splitlines() if line.startswith("|")]
    tables = [len(line.replace("\\|", "").split("|")) for line in rows]
    assert min(tables) >= 4
    worst = package.results["metrics"]["test"]["worst_site"]["site"]
    assert f"| {worst} (worst site) |" in body


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.words = [], []

    def handle_starttag(self, tag, _attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_shows_the_card_and_runs_nothing(package):
    page = Page()
    page.feed(text(package, "card.html"))
    assert "script" not in page.tags
    assert not {"img", "link", "iframe"} & set(page.tags)
    shown = " ".join(page.words)
    assert "Research use, not for clinical decisions" in shown
    assert "</title><script>" in shown
    temperature = package.calibration.temperature
    said = f"divided by {temperature:.3f} and shifted by 0.0, {round(package.calibration.bias[1], 3)}"
    assert said in shown
    assert said in text(package, "README.md")
    caution = f"Caution: {package.report['calibration']['caution']}."
    assert caution in shown
    assert caution in text(package, "README.md")
    assert page.tags.count("polyline") == 2
    low = package.report["operating_point"]["test"]["pooled"]["sensitivity"][1]
    assert f"({low:.3f} to" in shown


def children(element):
    name = element.tag.removeprefix(SPACE)
    found = [child.tag.removeprefix(SPACE) for child in element]
    yield name, found
    for child in element:
        yield from children(child)


def test_the_applied_model_card_follows_its_schema(package):
    root = ElementTree.fromstring(text(package, "card.xml"))  # noqa: S314 - our own
    seen = dict(children(root))
    assert set(SCHEMA) <= set(seen)
    for name, found in children(root):
        if name in SCHEMA:
            wanted = SCHEMA[name].split()
            assert found == [each.removesuffix("?") for each in wanted if each.removesuffix("?") in found]
            assert {each for each in wanted if not each.endswith("?")} <= set(found)
        elif name == "Results":
            assert set(found) == {"MetricResult"}
        elif name == "Keywords":
            assert set(found) == {"Keyword"}
        else:
            assert found == []
    assert all(each.tag.startswith(SPACE) and not each.attrib for each in root.iter())
    values = [json.loads(element.text) for element in root.iter(f"{SPACE}ValueJson")]
    assert round(package.results["metrics"]["test"]["pooled"]["auc"], 4) in [each["value"] for each in values]
    assert root.find(f".//{SPACE}ModelDeveloper").text == "not stated"


def test_every_item_of_tripod_is_answered_or_not_stated(package):
    items = checklist(package.card)
    assert {int(re.match(r"\d+", item)[0]) for item, _, _ in items} == set(range(1, 28))
    assert all(said for _, _, said in items)
    assert ("18a", "Funding", "not stated") in items
    assert len(text(package, "tripod-ai.md").splitlines()) == len(items) + 6


def test_a_card_of_a_run_that_decided_nothing_is_rendered(run, package):
    finished = load_finished(run)
    nothing = decide(finished.study, {}, None)
    bare = package.card | {
        "decisions": {**nothing.made, "report": nothing.report},
        "not_stated": nothing.not_stated,
        "training": package.card["training"] | {"patterns": None},
        "left_out": [{"site": "ash", "round": 3, "reason": "late"}],
    }
    files = renderings(bare)
    assert "Presence patterns: not stated" in files["README.md"].decode()
    assert "left out: ash, round 3: late" in files["README.md"].decode()
    assert "polyline class" not in files["card.html"].decode()
    assert "Calibration: not stated" in files["card.html"].decode()
