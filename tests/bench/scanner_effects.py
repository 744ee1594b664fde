"""What scaling by a site's own rows, or ComBat, is worth to a logistic regression, hospital by hospital.

``python -m tests.bench.scanner_effects FEDERATION … --splits 10`` splits the patients of federations anew, by
hospital and class. The scaling is the product's: sums of sites, buffers, each site's own. The regression is
on the pooled rows: what is asked is not how to train. Its penalty is the best of four on validation rows.
"""

import argparse
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from client.data.dataset import load_data
from client.data.site_table import SiteTable
from client.training.cohort import moments_of
from client.training.own_scaling import scale_own
from mmare.models.registry import build_model
from mmare.study.choices import Kind, Scaling
from mmare.study.study import load_study
from mmare.wire.messages import Split, Statistics
from server.rounds.scaling import set_scaling
from server.store.journal import Journal
from sites.config import load_site
from sites.splits import three_way

KINDS = (Scaling.ZSCORE, Scaling.SITE, Scaling.COMBAT)
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
MEASURES = {
    "AUC": roc_auc_score,
    "balanced accuracy": lambda label, score: balanced_accuracy_score(label, score > 0),
}


def scaled_rows(study, sites, folder):
    """Rows ``(N, W + M)`` of all sites as a model reads them, and which modalities are there."""
    study = study.override(["model.name=linear"])
    told = {
        name: Statistics(name, moments_of(study, data, 0, SiteTable(data))) for name, data in sites.items()
    }
    model, found = build_model(study), []
    with TemporaryDirectory(dir=folder) as place:
        set_scaling(model, told, study, Journal(Path(place) / "rounds.jsonl", "bench"))
    pooled = {name: value.clone() for name, value in model.scaling.state_dict().items()}
    for data in sites.values():
        model.scaling.load_state_dict(pooled)
        scale_own(model, data)
        found.append(torch.cat([model.scaling(data.embedding, data.present), data.present.float()], dim=1))
    return torch.cat(found).numpy()


def fitted(rows, label, train, val):
    """Scores ``(N,)`` of the regression with the best penalty, which lies in the train rows' span."""
    _, _, axes = np.linalg.svd(rows[train], full_matrices=False)
    rows, best = rows @ axes.T, None
    for penalty in PENALTIES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = LogisticRegression(C=penalty, class_weight="balanced", max_iter=200).fit(
                rows[train], label[train]
            )
        score = model.decision_function(rows)
        auc = roc_auc_score(label[val], score[val])
        if best is None or auc > best[0]:
            best = auc, score
    return best[1]


def measured(federation, seed):
    """By scaling, hospital (empty: all) and measure, on the test rows."""
    study = load_study(federation / "study.toml")
    names = [each.name for each in study.modalities if each.kind is not Kind.TEXT and each.width > 8]
    folders = sorted(path.parent for path in federation.glob("*/site.toml"))
    sites = {folder.name: load_data(load_site(folder / "site.toml"), study) for folder in folders}
    label = np.concatenate([data.label.numpy() for data in sites.values()])
    place = np.concatenate([[name] * len(data.label) for name, data in sites.items()])
    splits = np.array(
        three_way([[f"{a}|{b}" for a, b in zip(label, place, strict=True)], [*map(str, label)]], seed)
    )
    for name, data in sites.items():
        for split in Split:
            data.rows[split] = torch.from_numpy(np.flatnonzero(splits[place == name] == split.value))
    found = {}
    for kind in KINDS:
        rows = scaled_rows(
            study.override([f"modality.{name}.scaling={kind}" for name in names]), sites, federation
        )
        score = fitted(rows, label, splits == "train", splits == "val")
        for where in ("", *sites):
            test = (splits == "test") & (np.isin(place, [where]) if where else True)
            for name, measure in MEASURES.items():
                both = len(set(label[test])) > 1
                found[kind, where, name] = measure(label[test], score[test]) if both else np.nan
    return found


def main(arguments=None):
    """Print a table a federation and measure, and the differences from pooled moments with 95 % intervals."""
    parser = argparse.ArgumentParser()
    parser.add_argument("federation", nargs="+", type=Path)
    parser.add_argument("--splits", type=int, default=10)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    runs = [measured(federation, seed) for federation in given.federation for seed in range(given.splits)]
    for name in MEASURES:
        for where in dict.fromkeys(where for _, where, _ in runs[0]):
            values = {
                kind: np.array([run.get((kind, where, name), np.nan) for run in runs]) for kind in KINDS
            }
            told = [
                f"{kind} {np.nanmean(each):.3f} ± {np.nanstd(each, ddof=1):.3f}"
                for kind, each in values.items()
            ]
            for kind in KINDS[1:]:
                apart = values[kind] - values[Scaling.ZSCORE]
                apart = apart[~np.isnan(apart)]
                half = stats.t.ppf(0.975, len(apart) - 1) * apart.std(ddof=1) / np.sqrt(len(apart))
                low, high = apart.mean() - half, apart.mean() + half
                told.append(f"{kind} less {apart.mean():+.3f} ({low:+.3f}, {high:+.3f})")
            print(f"{name:18} {where or 'all':8}", " | ".join(told), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
