"""The result tables of the MMARE thesis (5.4 to 5.10) as plain data, with what is doubtful in them.

The numbers are copied as printed. Rows that cannot be true carry a footnote, and none of them is a target.
The thesis gives no spread; many of its accuracies are multiples of 1/156 or 1/124, so of one run, others of
the mean of three or five.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["PUBLISHED", "Published", "PublishedRow"]

SEX = {
    "accuracy": "Acc.",
    "balanced_accuracy": "Bacc.",
    "auc": "AUC",
    "f1": "F1",
    "precision": "Prec.",
    "recall": "Rec.",
}
EPOCH = {
    "accuracy": "Acc.",
    "macro_f1": "mF1",
    "macro_precision": "mPrec.",
    "macro_recall": "mRec.",
    "auc": "AUC",
}
VITAL = {"balanced_accuracy": "Bacc.", "auc": "AUC", "macro_f1": "mF1", "parameters": "#Params. (M)"}
VITAL_ABLATION = {
    "accuracy": "Acc.",
    "auc": "AUC",
    "macro_f1": "mF1",
    "macro_precision": "mPrec.",
    "macro_recall": "mRec.",
}

_IXI = "IXI: 516 subjects, test set of 156, its own split; four MRI contrasts, MCAR at the rate of the group"
_MMIST = "MMIST-ccRCC: 617 patients, test set of 124, its own split; modalities missing as they are"

_F1 = (
    "Impossible as printed: F1 is above the mean of precision and recall ({f1} against {mean}), which no one "
    "set of predictions gives."
)
_COPY = (
    "Impossible as printed: mF1 is above the mean of mPrec. and mRec. (0.630 against 0.593), and the same as "
    "Acc., from where it may have been copied."
)
_SAME = "Bacc. and mF1 are printed alike (0.6377): probably one was copied from the other."
_MODEL = "The AUC is 0.6636 in Table 5.6 and 0.6639 in Table 5.10, for the same model."
_SECOND = "Not the best Bacc. of its column: DRIM's is 0.7799."


@dataclass(frozen=True)
class PublishedRow:
    """A printed row.

    Args:
        name: As printed.
        model: Key of our registry.
        values: In the order of the table's columns.
        rate: Of MCAR; ``None`` where the data are as they are.
        clinical: Whether clinical data are among its modalities.
        conditioning: Of the ablation.
        fusion: Of the ablation.
        doubt: Footnote.
    """

    name: str
    model: str
    values: tuple[float, ...]
    rate: float | None = None
    clinical: bool = True
    conditioning: bool = True
    fusion: str = "pairwise"
    doubt: str = ""


@dataclass(frozen=True)
class Published:
    """A printed table.

    Args:
        number: In the thesis.
        title: What it is about.
        task: Of our data sets that it belongs to.
        measured: The data that the values are of.
        columns: Metric of ours -> heading, in printed order.
        rows: In printed order.
        ablation: Whether its rows are variants of MMARE.
    """

    number: str
    title: str
    task: str
    measured: str
    columns: Mapping[str, str]
    rows: tuple[PublishedRow, ...] = field(repr=False)
    ablation: bool = False


_NAMES = (  # printed name, key, with clinical data
    ("DRIM", "drim", True),
    ("UniLMMV", "unilmmv", True),
    ("AdaCoMed", "adacomed", True),
    ("HyperMM", "hypermm", False),
    ("MMARE w/o Clinical", "mmare", False),
    ("MMARE w/ Clinical", "mmare", True),
)
_VARIANTS = (  # printed name, conditioning, fusion
    ("No cond. & Mean", False, "mean"),
    ("Cond. & Mean", True, "mean"),
    ("No cond. & Pairwise", False, "pairwise"),
    ("Cond. & Pairwise (ours)", True, "pairwise"),
)


def _methods(
    values: Mapping[float, tuple[tuple[float, ...], ...]], doubts: Mapping[tuple[float, str], str]
) -> tuple[PublishedRow, ...]:
    return tuple(
        PublishedRow(name, model, row, rate, clinical, doubt=doubts.get((rate, name), ""))
        for rate, rows in values.items()
        for (name, model, clinical), row in zip(_NAMES, rows, strict=True)
    )


def _variants(
    values: tuple[tuple[float, ...], ...], rate: float | None, *, clinical: bool, doubt: str = ""
) -> tuple[PublishedRow, ...]:
    return tuple(
        PublishedRow(
            name, "mmare", row, rate, clinical, conditioning, fusion, doubt if name.endswith("(ours)") else ""
        )
        for (name, conditioning, fusion), row in zip(_VARIANTS, values, strict=True)
    )


_SEX_VALUES = {
    0.2: (
        (0.7564, 0.7455, 0.8614, 0.8000, 0.7103, 0.9157),
        (0.7308, 0.7264, 0.8100, 0.7586, 0.7253, 0.7952),
        (0.6923, 0.6787, 0.7955, 0.7551, 0.6549, 0.8916),
        (0.5833, 0.5551, 0.9305, 0.7796, 0.6641, 0.7166),
        (0.8333, 0.8318, 0.9018, 0.8458, 0.8381, 0.8554),
        (0.8355, 0.8319, 0.9098, 0.8516, 0.8189, 0.8876),
    ),
    0.4: (
        (0.7179, 0.7184, 0.7797, 0.7284, 0.7468, 0.7108),
        (0.6667, 0.6504, 0.7666, 0.7426, 0.6303, 0.9036),
        (0.7564, 0.7521, 0.8064, 0.7816, 0.7473, 0.8193),
        (0.5938, 0.5658, 0.8658, 0.7433, 0.6623, 0.7311),
        (0.8079, 0.8032, 0.8916, 0.8294, 0.7964, 0.8683),
        (0.8136, 0.8105, 0.8909, 0.8310, 0.8139, 0.8496),
    ),
    0.6: (
        (0.6474, 0.6398, 0.7033, 0.6961, 0.6429, 0.7590),
        (0.6538, 0.6515, 0.7535, 0.6786, 0.6706, 0.6867),
        (0.6731, 0.6730, 0.7405, 0.6871, 0.7000, 0.6747),
        (0.6569, 0.6403, 0.9213, 0.7857, 0.7411, 0.6227),
        (0.7990, 0.7934, 0.8825, 0.8251, 0.7721, 0.8889),
        (0.8135, 0.8094, 0.8999, 0.8340, 0.7824, 0.8933),
    ),
}
_EPOCH_VALUES = {
    0.2: (
        (0.5192, 0.4522, 0.4711, 0.4610, 0.6599),
        (0.4722, 0.4537, 0.5243, 0.5450, 0.7336),
        (0.5705, 0.5453, 0.5733, 0.5682, 0.7446),
        (0.6004, 0.5986, 0.6115, 0.7010, 0.8139),
        (0.6303, 0.6303, 0.5850, 0.6004, 0.7696),
        (0.6987, 0.6392, 0.6791, 0.6153, 0.8248),
    ),
    0.4: (
        (0.4316, 0.4222, 0.4407, 0.4886, 0.6615),
        (0.4017, 0.4038, 0.4641, 0.5530, 0.6924),
        (0.5043, 0.4600, 0.4651, 0.5034, 0.6973),
        (0.4614, 0.4668, 0.4596, 0.6538, 0.7884),
        (0.6115, 0.5478, 0.5498, 0.5525, 0.7429),
        (0.6974, 0.5879, 0.7174, 0.5523, 0.8010),
    ),
    0.6: (
        (0.3462, 0.3164, 0.3430, 0.3707, 0.5196),
        (0.2521, 0.2409, 0.2250, 0.3940, 0.5478),
        (0.4188, 0.3603, 0.3712, 0.3945, 0.5917),
        (0.4730, 0.4506, 0.4094, 0.5707, 0.7142),
        (0.5000, 0.4580, 0.4656, 0.4836, 0.6532),
        (0.6177, 0.5153, 0.5653, 0.5029, 0.7261),
    ),
}

PUBLISHED: Mapping[str, Published] = {
    table.number: table
    for table in (
        Published(
            "5.4",
            "Sex on IXI at three missing rates",
            "sex",
            _IXI,
            SEX,
            _methods(
                _SEX_VALUES,
                {
                    (0.2, "HyperMM"): _F1.format(f1="0.780", mean="0.690"),
                    (0.4, "HyperMM"): _F1.format(f1="0.743", mean="0.697"),
                    (0.6, "HyperMM"): _F1.format(f1="0.786", mean="0.682"),
                },
            ),
        ),
        Published(
            "5.5",
            "Epoch of the brain's life span on IXI at three missing rates",
            "epoch",
            _IXI,
            EPOCH,
            _methods(_EPOCH_VALUES, {(0.2, "MMARE w/o Clinical"): _COPY}),
        ),
        Published(
            "5.6",
            "Vital status at twelve months on MMIST-ccRCC",
            "vital12",
            _MMIST,
            VITAL,
            (
                PublishedRow("DRIM", "drim", (0.7799, 0.7987, 0.6932, 16.9)),
                PublishedRow("AdaCoMed", "adacomed", (0.7390, 0.8500, 0.6242, 18.7)),
                PublishedRow("UniLMMV", "unilmmv", (0.7656, 0.8104, 0.6281, 21.0)),
                PublishedRow(
                    "HyperMM", "hypermm", (0.6377, 0.6532, 0.6377, 12.9), clinical=False, doubt=_SAME
                ),
                PublishedRow(
                    "MMARE w/o Clinical",
                    "mmare",
                    (0.6327, 0.6636, 0.5346, 1.4),
                    clinical=False,
                    doubt=_MODEL,
                ),
                PublishedRow("MMARE w/ Clinical", "mmare", (0.7753, 0.7994, 0.6847, 1.4), doubt=_SECOND),
            ),
        ),
        Published(
            "5.7",
            "Ablation, sex on IXI at 20 % missing, with clinical data",
            "sex",
            _IXI,
            SEX,
            _variants(
                (
                    (0.7607, 0.7550, 0.8718, 0.7895, 0.7421, 0.8434),
                    (0.7393, 0.7270, 0.8541, 0.7897, 0.6924, 0.9197),
                    (0.8184, 0.8156, 0.8963, 0.8342, 0.8113, 0.8594),
                    (0.8355, 0.8319, 0.9098, 0.8516, 0.8189, 0.8876),
                ),
                0.2,
                clinical=True,
            ),
            ablation=True,
        ),
        Published(
            "5.8",
            "Ablation, sex on IXI at 60 % missing, with clinical data",
            "sex",
            _IXI,
            SEX,
            _variants(
                (
                    (0.8019, 0.7974, 0.8848, 0.8247, 0.7692, 0.8889),
                    (0.8089, 0.8047, 0.8804, 0.8299, 0.7785, 0.8889),
                    (0.7855, 0.7795, 0.8930, 0.8155, 0.7460, 0.9022),
                    (0.8135, 0.8094, 0.8999, 0.8340, 0.7824, 0.8933),
                ),
                0.6,
                clinical=True,
            ),
            ablation=True,
        ),
        Published(
            "5.9",
            "Ablation on MMIST-ccRCC with clinical data",
            "vital12",
            _MMIST,
            VITAL_ABLATION,
            _variants(
                (
                    (0.5807, 0.7078, 0.4912, 0.5560, 0.6390),
                    (0.7338, 0.7604, 0.5804, 0.5806, 0.6630),
                    (0.8548, 0.7935, 0.6587, 0.6505, 0.6688),
                    (0.8226, 0.7994, 0.6847, 0.6577, 0.7753),
                ),
                None,
                clinical=True,
            ),
            ablation=True,
        ),
        Published(
            "5.10",
            "Ablation on MMIST-ccRCC without clinical data",
            "vital12",
            _MMIST,
            VITAL_ABLATION,
            _variants(
                (
                    (0.4543, 0.6396, 0.4143, 0.5557, 0.6301),
                    (0.6398, 0.6405, 0.5218, 0.5678, 0.6411),
                    (0.5027, 0.6413, 0.4478, 0.5605, 0.6470),
                    (0.6801, 0.6639, 0.5346, 0.5662, 0.6327),
                ),
                None,
                clinical=False,
                doubt=_MODEL,
            ),
            ablation=True,
        ),
    )
}
