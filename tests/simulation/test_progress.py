from rich.console import Console

from simulation.progress import RoundTable, live_rounds

EVENTS = [
    {"event": "run_started", "run": "study-1", "mode": "federated"},
    {"event": "roll_call", "site": "far", "accepted": False, "reason": "study hash"},
    {"event": "round_started", "round": 1},
    {"event": "site_update", "round": 1, "site": "a", "samples": 30, "train_loss": 0.2},
    {"event": "site_update", "round": 1, "site": "b", "samples": 10, "train_loss": 0.6},
    {"event": "site_left_out", "round": 1, "site": "c", "reason": "no answer before the deadline"},
    {"event": "aggregated", "round": 1, "seconds": {"wait": 1.0, "aggregate": 0.25}},
    {"event": "validated", "round": 1, "metrics": {"pooled": {"balanced_accuracy": 0.75}}},
    {"event": "something_new", "round": 1},
]


def test_a_terminal_shows_the_rounds():
    console = Console(force_terminal=True, width=120, record=True)
    table = RoundTable(5, console)
    for event in EVENTS:
        table(event)
    console.print(table.render())
    text = console.export_text()
    for words in (
        "study-1",
        "0.300",
        "0.750 *",
        "c",
        "1.25",
        "1 of at most 5 rounds",
        "far does not take part",
    ):
        assert words in text


def test_elsewhere_a_round_is_a_line():
    console = Console(force_terminal=False, width=120, record=True)
    table = RoundTable(5, console)
    for event in EVENTS:
        table(event)
    assert (
        "round 1: train loss 0.300, validation balanced accuracy 0.750, 2 sites, 1.25 s"
        in console.export_text()
    )


def test_a_brief_table_has_no_lines_for_rounds_but_names_who_is_missing():
    console = Console(force_terminal=False, width=120, record=True)
    with live_rounds(5, console, brief=True) as table:
        for event in EVENTS:
            table(event)
    text = console.export_text()
    assert "round 1: train loss" not in text
    assert "far does not take part" in text
    assert "c left out" in text


def test_a_resumed_run_goes_on_where_it_was():
    console = Console(force_terminal=True, width=120, record=True)
    table = RoundTable(5, console)
    table({"event": "resumed", "round": 3})
    console.print(table.render())
    assert "3 of at most 5 rounds" in console.export_text()


def test_a_run_without_validation_rows_says_so_once():
    console = Console(force_terminal=False, width=120, record=True)
    with live_rounds(5, console, brief=True) as table:
        table(EVENTS[0])
        for number in (1, 2):
            pooled = {"balanced_accuracy": None, "log_loss": None, "n": 0}
            table({"event": "round_started", "round": number})
            table({"event": "validated", "round": number, "metrics": {"pooled": pooled}})
    assert console.export_text().count("no validation rows: the best round cannot be selected") == 1
