"""A site whose study names encoders from files: embed, load, roll call, predict."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from client.data.dataset import load_data, modality_fingerprint
from client.data.embed import embed_site
from client.encoders.files.store import add_encoder
from client.encoders.registry import check_encoders
from client.prediction.run import predict_site
from client.prediction.written.table_format import Format
from mmare.errors import DataError, InputError
from mmare.package.package import read_package
from mmare.study.choices import Kind, MaskUse
from mmare.study.specs import ModalitySpec
from mmare.study.study import Study
from sites.config import load_site
from tests.client.data.test_embed_sources import volume, write
from tests.packages import made_package

CT = ModalitySpec("ct", Kind.VOLUME, 8, "file:onnx-volume")
MR = ModalitySpec("mr", Kind.VOLUME, 16, "file:transformers-slices")
WSI = ModalitySpec("wsi", Kind.VOLUME, 12, "file:timm-tiles")
NOTE = ModalitySpec("note", Kind.TEXT, 16, "file:transformers-text")


@pytest.fixture
def lab(sealed, tmp_path):
    """Two patients with CT, MR, a slide and a note; the slide's encoder is not added, it lies elsewhere."""
    for name in ("onnx_volume", "transformers_slices", "transformers_text"):
        add_encoder(sealed(name), tmp_path / "weights", torch.device("cpu"))
    for number in range(2):
        write(tmp_path / f"{number}.nii.gz", volume(number))
    picture = np.full((900, 1100, 3), 245, np.uint8)
    picture[100:800, 100:900] = np.random.default_rng(0).integers(
        (150, 60, 120), (230, 140, 200), (700, 800, 3)
    )
    Image.fromarray(picture).save(tmp_path / "slide.tif", resolution=20000, resolution_unit=3)
    (tmp_path / "site.toml").write_text(
        f"""[site]
id = "lab"
[data]
manifest = "patients.csv"
[compute]
weights = "weights"
device = "cpu"
[modality.ct]
column = "ct"
[modality.mr]
column = "mr"
[modality.wsi]
column = "slide"
encoder = "{sealed("timm_tiles")}"
[modality.note]
column = "note"
"""
    )
    (tmp_path / "patients.csv").write_text(
        "patient_id,label,split,ct,mr,slide,note\n"
        "a,no,train,0.nii.gz,1.nii.gz,slide.tif,the patient is a male.\n"
        "b,yes,train,1.nii.gz,,,a tumor.\n"
    )
    return load_site(tmp_path / "site.toml")


def study(*modalities):
    return Study("s", ("no", "yes"), modalities)


def test_every_kind_of_input_is_embedded_once_and_fingerprinted(lab):
    wanted = study(CT, MR, WSI, NOTE)
    report = embed_site(lab, wanted)
    assert (report.encoded, report.refused) == (4, ())
    assert embed_site(lab, wanted).cached == 4
    data = load_data(lab, wanted)
    assert data.present.tolist() == [[True] * 4, [True, False, False, True]]
    assert all(float(part[0].abs().sum()) > 0 for part in data.embedding)
    assert not torch.equal(data.embedding[0][0], data.embedding[0][1])
    marks = data.encoders
    assert len(set(marks.values())) == 4
    assert all(mark.startswith("file/1+") and " " not in mark and len(mark) < 500 for mark in marks.values())
    assert "wsi-tiles/1(0.5,64," in marks["wsi"]


@pytest.mark.slow
def test_a_new_encoder_of_the_same_name_is_another_fingerprint_and_encodes_again(lab, copied):
    from tests.client.encoders.files.test_folder import changed

    wanted = study(CT)
    embed_site(lab, wanted)
    before = modality_fingerprint(CT, lab)
    folder = changed(copied("onnx_volume"), output__normalise="l2")
    from client.encoders.files.store import seal_encoder

    seal_encoder(folder)
    other = replace(lab, modalities={"ct": replace(lab.modalities["ct"], encoder=folder)})
    assert modality_fingerprint(CT, other) != before
    assert embed_site(other, wanted).encoded == 2
    assert load_data(other, wanted).embedding[0].norm(dim=1).tolist() == pytest.approx([1, 1])
    assert embed_site(lab, wanted).cached == 2


@pytest.mark.slow
def test_masks_of_a_study_reach_an_encoder_from_a_file(lab):
    inside = np.zeros((16, 18, 12))
    inside[4:12, 5:14, 3:9] = 1
    write(lab.folder / "masks" / "0.nii.gz", inside)
    write(lab.folder / "masks" / "1.nii.gz", inside)
    from sites.config import MaskSource

    source = replace(lab.modalities["ct"], mask=MaskSource(folder=lab.folder / "masks"))
    masked = replace(lab, modalities={"ct": source})
    found = []
    for spec in (CT, replace(CT, mask=MaskUse.STRIP), replace(CT, crop_to_mask=True)):
        assert embed_site(masked, study(spec)).encoded == 2
        found.append((modality_fingerprint(spec, masked), load_data(masked, study(spec)).embedding[0]))
    assert len({mark for mark, _ in found}) == 3
    assert not torch.allclose(found[0][1], found[1][1])


def test_a_finished_model_predicts_with_the_encoder_it_was_trained_on_and_no_other(lab, tmp_path):
    wanted = study(CT, NOTE)
    marks = {each.name: modality_fingerprint(each, lab) for each in wanted.modalities}
    package = read_package(made_package(tmp_path / "model", wanted, marks, {"no": 6, "yes": 2}))
    done = predict_site(package, lab, lab.manifest, tmp_path / "new.csv", Format.CSV)
    assert done.patterns == ["11", "11"]
    (lab.weights / "onnx-volume" / "encoder.toml").write_text(
        (lab.weights / "onnx-volume" / "encoder.toml")
        .read_text()
        .replace('pooling = "mean"', 'pooling = "max"')
    )
    with pytest.raises(InputError, match=r"the model was trained on file/1\+onnx-volume"):
        predict_site(package, lab, lab.manifest, tmp_path / "new.csv", Format.CSV)


@pytest.mark.parametrize(
    ("spec", "error", "sentence"),
    [
        pytest.param(
            replace(CT, encoder="file:gone"),
            InputError,
            "no encoder.toml of encoder gone; add it first",
            id="gone",
        ),
        pytest.param(
            replace(CT, width=9), DataError, "is volume of width 9, but its encoder .* gives 8", id="width"
        ),
        pytest.param(
            replace(CT, size=(8, 8, 8)), DataError, "has a size or window, but file:onnx-volume", id="size"
        ),
        pytest.param(
            replace(CT, encoder="file:transformers-text", width=16),
            DataError,
            "takes text and gives 16",
            id="kind",
        ),
    ],
)
def test_a_study_that_does_not_fit_the_encoder_is_refused(lab, spec, error, sentence):
    check_encoders(study(spec))
    with pytest.raises(error, match=sentence):
        embed_site(lab, study(spec))


@pytest.mark.slow
def test_features_have_no_encoder_from_a_file(lab):
    with pytest.raises(DataError, match="names the encoder 'file:onnx-volume', expected one of given"):
        check_encoders(study(replace(CT, kind=Kind.FEATURES)))
    text = (
        lab.folder.joinpath("site.toml")
        .read_text()
        .replace('column = "ct"', 'file = "ct.npz"\nencoder = "x"')
    )
    (lab.folder / "other.toml").write_text(text)
    with pytest.raises(DataError, match=r"\[modality.ct\] encoder makes vectors"):
        load_site(lab.folder / "other.toml")
