"""Text as hashed word counts: deterministic, no weights, no vocabulary that could differ between sites."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["FINGERPRINT", "encode_texts"]

FINGERPRINT: Final = "hashing-text/1"  # raise the number when the features change
WORD: Final = r"[\w+-]+"  # keeps "70-79" and "G3" whole
NGRAMS: Final = (1, 2)  # pairs keep "stage T3" apart from "grade G3"


def encode_texts(texts: Sequence[str], width: int) -> NDArray[np.float32]:
    """Hash lower-cased words and word pairs into signed counts ``(N, width)``, each row of L2 norm 1.

    Example:
        >>> encode_texts(["The tumor grade is G3."], 512).shape
        (1, 512)
    """
    from sklearn.feature_extraction.text import HashingVectorizer  # noqa: PLC0415  takes seconds to import

    vectorizer = HashingVectorizer(n_features=width, ngram_range=NGRAMS, norm="l2", token_pattern=WORD)
    rows: NDArray[np.float32] = vectorizer.transform(texts).toarray().astype(np.float32)
    return rows
