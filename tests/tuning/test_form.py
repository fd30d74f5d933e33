"""The form: what it says is a config, what it shows follows, and nothing waits for a person."""

import dataclasses
import re
import subprocess
import sys
import threading
import time

import pytest

from ftkit import chat, config, models, tuning
from ftkit.config import ALL_LINEAR, TrainConfig
from ftkit.errors import ConfigError
from ftkit.hardware import Hardware
from ftkit.training import History, HistoryPoint, train
from ftkit.tuning.consequences import as_text
from ftkit.tuning.panel import GROUPS

T4 = Hardware("cuda", "Tesla T4", 14.6, (7, 5), False, 2)
MODEL = "HuggingFaceTB/SmolLM2-135M"


@pytest.fixture
def form(tmp_path):
    return tuning.config_form(TrainConfig(), model=MODEL, examples=320, hardware=T4, run_root=tmp_path)


@pytest.fixture
def rows_of(form):
    """The controls of each setting, with the panel made."""
    assert form.panel is not None
    return form._panel.rows


def test_it_starts_at_the_config_that_it_is_given(form):
    assert form.value == TrainConfig()


def test_without_a_config_it_starts_at_what_suits_the_machine(tmp_path):
    assert tuning.config_form(model=MODEL, hardware=T4, run_root=tmp_path).value == TrainConfig.for_hardware(T4)


def test_every_setting_has_a_row_in_its_group(rows_of):
    assert set(rows_of) == {spec.name for spec in dataclasses.fields(TrainConfig)}
    assert list(GROUPS) == ["model", "adapter", "optimisation", "length", "records"]


def test_moving_a_slider_moves_the_value_and_what_it_means(form, rows_of):
    before = form.consequences.trainable
    rows_of["lora_r"].slider.value = 32
    assert form.value.lora_r == 32
    assert form.consequences.trainable == 2 * before
    assert f"{2 * before:,}" in form._panel.meaning.value


def test_assigning_a_config_moves_every_control(form, rows_of):
    config = TrainConfig(
        lora_r=12, learning_rate=1.23e-4, load_in_4bit=False, target_modules=("q_proj", "v_proj"), optim="sgd", seed=7
    )
    form.value = config
    assert (rows_of["lora_r"].slider.value, rows_of["lora_r"].box.value) == (12, "12")
    assert (rows_of["learning_rate"].slider.value, rows_of["learning_rate"].box.value) == (1.23e-4, "1.23e-4")
    assert rows_of["load_in_4bit"].picker.value is False
    assert [n for n, toggle in rows_of["target_modules"].toggles.items() if toggle.value] == ["q_proj", "v_proj"]
    assert (rows_of["optim"].picker.value, rows_of["seed"].box.value) == ("sgd", "7")
    assert form.value == config


def test_only_a_config_can_be_assigned(form):
    with pytest.raises(ConfigError, match=r"wants a TrainConfig, not dict"):
        form.value = {"lora_r": 8}


@pytest.mark.parametrize(
    ("name", "typed"),
    [
        ("lora_r", "0"),
        ("lora_r", "2.5"),
        ("learning_rate", "fast"),
        ("learning_rate", "nan"),
        ("max_steps", "0"),
        ("seed", ""),
        ("max_length", "1e99"),
    ],
)
def test_what_is_not_allowed_is_refused_with_its_reason(form, rows_of, name, typed):
    """The value stays, the box goes back, and the panel says why."""
    before = form.value
    rows_of[name].box.value = typed
    assert form.value == before
    assert rows_of[name].box.value == as_text(getattr(before, name))
    assert (
        f"not taken:</b> {name}=" in rows_of[name].note.value
        or "max_steps=0 would train nothing" in rows_of[name].note.value
    )


def test_a_refusal_goes_away_with_the_next_good_value(form, rows_of):
    rows_of["lora_r"].box.value = "0"
    rows_of["lora_r"].box.value = "24"
    assert form.value.lora_r == 24
    assert "not taken" not in rows_of["lora_r"].note.value


def test_the_last_target_module_cannot_be_switched_off(form, rows_of):
    form.value = TrainConfig(target_modules=("q_proj",))
    rows_of["target_modules"].toggles["q_proj"].value = False
    assert form.value.target_modules == ("q_proj",)
    assert rows_of["target_modules"].toggles["q_proj"].value is True


def test_modules_to_choose_from_are_the_model_s(rows_of):
    assert set(rows_of["target_modules"].toggles) == set(ALL_LINEAR)


def test_a_warning_stands_beside_its_field(form, rows_of):
    """What is unusual is said below the setting that it concerns, and counted on its tab."""
    form.value = TrainConfig(learning_rate=9e-3)
    assert "learning_rate=0.009 is above the usual" in rows_of["learning_rate"].note.value
    assert re.match(r"Optimisation ! \d", form._panel.tabs.get_title(2))
    form.value = TrainConfig()
    assert "ftkit-note" not in rows_of["learning_rate"].note.value


@pytest.mark.parametrize("name", [*config.EFFORTS, *config.MACHINES])
def test_presets_are_valid_and_press_as_buttons(form, rows_of, name):
    next(button for button in form._panel.presets if button.description == name).click()
    for setting, value in config.preset(name)["settings"].items():
        assert getattr(form.value, setting) == value


def test_starting_again_goes_back(form, rows_of):
    """The last button undoes what a preset did."""
    form._panel.presets[config.EFFORTS.index("thorough")].click()
    assert form.value != TrainConfig()
    form._panel.back.click()
    assert form.value == TrainConfig()


def test_headless_it_is_a_table_and_its_value_the_default(form, monkeypatch):
    """Nothing waits: without a front end the form is HTML, with the settings, their help and what they mean."""
    shown = []
    monkeypatch.setenv("FTKIT_HEADLESS", "1")
    monkeypatch.setattr("IPython.display.display", shown.append)
    form._ipython_display_()
    text = shown[0].data
    assert "<th>adapter</th>" in text
    assert "trainable parameters" in text
    assert form._panel is None


def test_plain_python_needs_no_widgets_at_all(tmp_path):
    """The form and its value work where ipywidgets cannot be imported; the machine is given, so torch is not either."""
    script = (
        "import sys; sys.modules['ipywidgets'] = sys.modules['torch'] = None\n"
        "from ftkit import hardware\nfrom ftkit.config import MACHINES\nhardware.detect = lambda: MACHINES['T4']\n"
        "from ftkit import tuning\n"
        f"how = dict(examples=100, hardware=MACHINES['T4'], run_root={str(tmp_path)!r})\n"
        f"form = tuning.config_form(model={MODEL!r}, **how)\n"
        "form.value = form.value.replace(lora_r=8); print(form.value.lora_r, len(form._repr_html_()) > 1000)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["8", "True"]


def test_moving_the_rank_is_answered_within_150_ms(form, rows_of):
    """All consequences and all HTML, on one core; benchmarks/form.py prints the same."""
    spent = []
    for index in (0, 8, 3, 5, 1, 7):
        began = time.perf_counter()
        rows_of["lora_r"].slider.index = index
        spent.append(time.perf_counter() - began)
    assert sorted(spent)[len(spent) // 2] < 0.15


def fake_trainer(config, run, stop, watch):
    """Stands in for a long run: reports points until it is told to stop."""
    points = []
    for step in range(1, 200):
        points.append(HistoryPoint(step, loss=2.0 / step, seconds=0.5 * step, tokens=100 * step))
        watch(points, 200)
        if stop.wait(0.005):
            break
    return History.of(points, stopped=len(points) < 199)


@pytest.fixture
def trainable(tmp_path):
    return tuning.config_form(
        TrainConfig(), model=MODEL, examples=320, hardware=T4, run_root=tmp_path, train=fake_trainer
    )


def test_stop_ends_a_run_and_the_panel_says_how_to_go_on(trainable):
    assert trainable.panel is not None
    buttons = trainable._panel.buttons
    buttons["Train"].click()
    assert (buttons["Train"].disabled, buttons["Stop"].disabled) == (True, False)
    while len(trainable.session.points) < 3:
        time.sleep(0.01)
    buttons["Stop"].click()
    history = trainable.session.wait(10)
    assert history.stopped
    assert "Press Train with the same settings" in trainable._panel.status.value
    assert "<svg" in trainable._panel.live.value
    assert (buttons["Train"].disabled, buttons["Stop"].disabled) == (False, True)


def test_a_run_that_was_watched_gives_the_step_time(trainable):
    trainable.start()
    while len(trainable.session.points) < 5:
        time.sleep(0.01)
    trainable.stop()
    trainable.session.wait(10)
    assert trainable.consequences.situation.step_time.seconds(8, 0) == pytest.approx(0.5)


def test_measuring_leaves_a_step_time_and_nothing_else(tmp_path):
    """Four updates under the same settings, whatever else they say, in a folder that is gone afterwards."""
    seen = []

    def trainer(config, run, stop, watch):
        seen.append((config, run.path, run.path.exists()))
        return fake_trainer(config, run, threading.Event(), watch)

    config = TrainConfig(early_stopping_patience=3, save_steps=7)
    form = tuning.config_form(config, model=MODEL, examples=320, hardware=T4, run_root=tmp_path, train=trainer)
    form.measure()
    form.session.wait(20)
    measured, folder, was_there = seen[0]
    assert (measured.max_steps, measured.save_steps, measured.lora_r, was_there) == (4, 0, 16, True)
    assert not folder.exists()
    assert list(tmp_path.iterdir()) == []
    assert form.value == config
    assert form.consequences.situation.step_time.source == "measured now"


def test_rows_are_counted_and_measured_with_a_tokenizer(tokenizer, splits, tmp_path):
    """Splits count their training part; with a tokenizer the longest row is known."""
    form = tuning.config_form(
        TrainConfig(), model=MODEL, examples=splits, tokenizer=tokenizer, hardware=T4, run_root=tmp_path
    )
    situation = form.consequences.situation
    assert situation.rows == len(splits.train)
    assert situation.longest == max(len(chat.tokenize(row, tokenizer)["input_ids"]) for row in splits.train)


def test_an_error_in_the_thread_is_a_message_in_the_panel(tmp_path):
    def fails(config, run, stop, watch):
        raise RuntimeError("the disk caught fire")

    form = tuning.config_form(TrainConfig(), model=MODEL, examples=320, hardware=T4, run_root=tmp_path, train=fails)
    assert form.panel is not None
    form._panel.buttons["Train"].click()
    with pytest.raises(RuntimeError, match="caught fire"):
        form.session.wait(10)
    assert "RuntimeError: the disk caught fire" in form._panel.status.value


def test_two_runs_at_once_are_refused(trainable):
    trainable.start()
    with pytest.raises(ConfigError, match="under way"):
        trainable.start()
    trainable.stop()
    trainable.session.wait(10)


def test_without_rows_to_train_on_the_buttons_stay_off(form):
    assert form.panel is not None
    assert all(button.disabled for button in form._panel.buttons.values())
    with pytest.raises(ConfigError, match="nothing to train"):
        form.start()


@pytest.mark.slow
def test_train_stop_and_go_on_with_the_real_trainer(model, tokenizer, splits, toy_config, tmp_path):
    """Stop leaves a checkpoint in an unfinished run; the same settings finish it; the table tells both."""
    config = toy_config.replace(max_steps=30, save_steps=0, eval_steps=0)
    adapted = models.add_lora(model, config)
    reached = threading.Event()

    def work(config, run, stop, watch):
        def watched(points, total):
            watch(points, total)
            if points[-1].step >= 3:
                reached.set()
                time.sleep(0.05)

        return train(adapted, tokenizer, splits, config, run, stop=stop, watch=watched)

    form = tuning.config_form(config, model=model.config, examples=splits, hardware=T4, run_root=tmp_path, train=work)
    form.start()
    assert reached.wait(60)
    form.stop()
    history = form.session.wait(60)
    assert history.stopped
    assert 3 <= history.steps < 30
    assert f"resumes at {history.steps}" in str(form.runs)
    form.start()
    assert form.session.wait(60).steps == 30
    assert "✓ finished, 30 updates" in str(form.runs)
    with pytest.raises(ConfigError, match="holds a finished training with these settings"):
        form.start()


def test_a_dict_is_no_config():
    with pytest.raises(ConfigError, match="config is dict, wanted a TrainConfig"):
        tuning.config_form({"lora_r": 8})
