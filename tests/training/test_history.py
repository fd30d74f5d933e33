"""The record of a run: what is written is what is read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftkit.config import TrainConfig
from ftkit.errors import DataError, FtkitWarning, MissingArtifact
from ftkit.runs import Run
from ftkit.training import History, HistoryPoint, RunsTable, read_points
from ftkit.training.history import COLUMNS, as_line, holes, write_points

CURVE = [
    HistoryPoint(i, loss=2.0 / i, learning_rate=1e-4, tokens=100 * i, seconds=2.0 * i, memory_gib=1.0)
    for i in range(1, 11)
]
CURVE.append(HistoryPoint(10, val_loss=0.3, seconds=21.0, memory_gib=1.5))


def test_history_sums_up_its_points():
    history = History.of(CURVE)
    assert (history.steps, history.seconds, history.tokens, history.peak_memory_gib) == (10, 21.0, 1000, 1.5)
    assert history.tokens_per_s == pytest.approx(1000 / 21)
    assert history.val_losses == [(10, 0.3)]


number = st.one_of(st.none(), st.floats(1e-5, 1e5).map(lambda x: float(f"{x:.6g}")))


@given(
    st.lists(
        st.builds(
            HistoryPoint,
            step=st.integers(0, 10**6),
            loss=number,
            val_loss=number,
            tokens=st.one_of(st.none(), st.integers(0, 10**9)),
        )
    )
)
def test_written_points_read_back_equal(tmp_path_factory, points):
    path = tmp_path_factory.mktemp("history") / "h.csv"
    write_points(path, points)
    assert read_points(path) == points


def test_a_line_cut_by_a_kill_is_left_out(tmp_path):
    path = tmp_path / "h.csv"
    write_points(path, CURVE[:2])
    with path.open("a") as file:
        file.write(as_line(CURVE[2])[:-3])
    assert len(read_points(path)) == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a,b\n",
        ",".join(HistoryPoint.__dataclass_fields__) + "\n1,x,,,,,,\n",
        ",".join(HistoryPoint.__dataclass_fields__) + "\n1,2\n",
    ],
)
def test_what_is_no_history_names_the_line(tmp_path, text):
    path = tmp_path / "h.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=r"line [12]"):
        History.load(path)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([1, 2, 3, 7, 8], "nothing between the steps 3 and 7"),
        ([5, 6, 7, 8], "nothing between the steps 0 and 5"),
        ([1, 5, 10, 25, 30], "nothing between the steps 10 and 25"),
        ([1, 2, 2, 3], "step 2 stands in it twice"),
        ([1, 3, 2, 4], "its steps are out of order"),
    ],
)
def test_a_hole_in_the_curve_is_told(tmp_path, steps, said):
    write_points(tmp_path / "h.csv", [HistoryPoint(step, loss=1.0) for step in steps])
    with pytest.warns(FtkitWarning, match=rf"has a hole: .*{said}"):
        assert len(History.load(tmp_path / "h.csv").losses) == len(steps)


@pytest.mark.parametrize("steps", [[], [1], [10], [1, 2, 3], [1, 5, 10, 15], [5, 10], [10, 20, 30], [1, 3, 6]])
def test_a_whole_curve_has_no_hole(steps):
    assert holes([HistoryPoint(step, loss=1.0) for step in steps]) == []


def test_a_curve_must_reach_the_step_that_a_run_goes_on_from():
    points = [HistoryPoint(step, loss=1.0) for step in (1, 5, 10)]
    assert holes(points, 5, 14) == []
    assert holes(points, 5, 15) == ["nothing between the steps 10 and 15"]
    assert holes([], 5, 4) == []
    assert holes([], 5, 10) == ["nothing between the steps 0 and 10"]


def test_missing_history(tmp_path):
    with pytest.raises(MissingArtifact, match=r"training\.train"):
        History.load(tmp_path / "none.csv")


def test_a_history_from_before_updates_were_counted_is_read(tmp_path):
    (tmp_path / "h.csv").write_text(
        "step,loss,val_loss,learning_rate,grad_norm,tokens,seconds,memory_gib\n1,2.5,,0,1,9,1,1\n"
    )
    history = History.load(tmp_path / "h.csv")
    assert (history.losses, history.applied_updates) == ([(1, 2.5)], None)


def test_columns_that_are_not_known_are_refused(tmp_path):
    (tmp_path / "h.csv").write_text(",".join([*COLUMNS, "more"]) + "\n")
    with pytest.raises(DataError, match="line 1: wanted the columns"):
        History.load(tmp_path / "h.csv")


def finished(root, name, rank):
    """A run folder as a training leaves it."""
    run = Run.create(name, root)
    TrainConfig(lora_r=rank).save(run / "config.yaml")
    write_points(run / "history.csv", CURVE)
    run.finish("train", base_model="toy", device="here")
    return run


def test_the_table_shows_only_settings_that_differ(tmp_path):
    finished(tmp_path, "a", 8)
    finished(tmp_path, "b", 16)
    table = RunsTable.of(tmp_path)
    assert table.differing == ("lora_r",)
    assert {row.name: table.cells(row)[-1] for row in table.rows} == {"a": "8", "b": "16"}
    assert "0.300" in str(table)
    assert "<th>lora_r</th>" in table._repr_html_()


def test_the_table_tells_a_damaged_run_by_name(tmp_path):
    finished(tmp_path, "good", 8)
    bad = finished(tmp_path, "bad", 8)
    (bad / "config.yaml").write_text("lora_r: many\n")
    states = {row.name: row.state for row in RunsTable.of(tmp_path).rows}
    assert states["good"].startswith("✓ finished")
    assert "cannot be read" in states["bad"]
    assert "lora_r" in states["bad"]


def test_an_empty_folder_has_no_runs(tmp_path):
    assert RunsTable.of(tmp_path / "nowhere").rows == ()
