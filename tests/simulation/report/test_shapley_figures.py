"""What the report of a run shows of Shapley values is what the sites told."""

from simulation.report.shapley_figures import shapley_drawings


def moved(share, mean=0.1, n=9):
    return {"share": share, "mean": mean, "n": n}


SHAPLEY = {
    "pooled": {"ct": moved(0.75), "labs": moved(0.25)},
    "sites": {"ash": {"ct": moved(1.0), "labs": moved(0.0, None, 0)}},
}


def test_figures_have_a_mark_for_every_site_and_modality_that_is_told():
    share, mean = shapley_drawings(SHAPLEY, ("ash", "birch"))
    assert share.svg.count("var(--site-0)") > mean.svg.count("var(--site-0)")  # nobody at ash has labs
    for drawing in (share, mean):
        assert "var(--site-0)" in drawing.svg
        assert "var(--site-1)" not in drawing.svg


def test_nothing_is_drawn_of_a_run_that_told_none():
    assert shapley_drawings({}, ("ash",)) == []
    nobody = {"pooled": {"ct": moved(None, None, 0)}, "sites": {}}
    assert shapley_drawings(nobody, ("ash",)) == []
