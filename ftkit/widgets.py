"""A form for a config: sliders made from `TrainConfig`'s own fields, with what they mean shown as they move.

Sits on top of several modules and computes nothing itself. Without a person before the kernel it is a table.
"""

import dataclasses
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ftkit import learn, presets, shapes
from ftkit.config import TrainConfig
from ftkit.consequences import Consequences, Situation, consequences
from ftkit.errors import ConfigError, FtkitError
from ftkit.hardware import Hardware, detect
from ftkit.knobs import groups
from ftkit.pace import Pace
from ftkit.panel import Panel
from ftkit.runs import default_root
from ftkit.runs_table import RunsTable
from ftkit.session import Session, Trainer, trainer_of
from ftkit.shapes import ModelShape

_SAMPLED_ROWS = 500


def config_form(
    config: TrainConfig | None = None,
    *,
    model: Any = None,
    examples: Any = None,
    tokenizer: Any = None,
    hardware: Hardware | None = None,
    run_root: str | Path | None = None,
    seconds_per_step: float | None = None,
    train: Trainer | None = None,
) -> "ConfigForm":
    """A panel whose `.value` is the `TrainConfig` that its sliders say.

    Args:
        config: where the sliders start; by default what suits the machine.
        model: a base model's name, a loaded model, its config, or a `shapes.ModelShape`; by default what suits the machine.
        examples: `data.Splits`, a dataset, or just the number of rows. Splits are wanted for the Train button.
        tokenizer: with it, the lengths of the rows are known, and memory and minutes are those of these rows.
        hardware: the machine to plan for; by default this one. Planning for another one turns off Train and measured minutes.
        run_root: where runs go and where earlier ones are looked for; as in `Run.create`.
        seconds_per_step: of one weight update under `config`, where it is known; else an earlier run's, else measured.
        train: what the Train button does instead of loading `model`: `train(config, run, stop, watch) -> History`.

    Returns:
        The form. Shown as the last line of a cell it is the panel; without a front end it is a table of the settings.

    Raises:
        ConfigError: `seconds_per_step` is no positive number, or the model is of a kind that is not described.
        ModelError: no model of this name.
    """
    if config is not None and not isinstance(config, TrainConfig):
        raise ConfigError(
            f"config is {type(config).__name__}, wanted a TrainConfig: TrainConfig(**settings) makes one."
        )
    here = detect()
    machine = hardware or here
    config = config or TrainConfig.for_hardware(machine)
    root = Path(run_root) if run_root is not None else default_root()
    name, shape = _named_shape(model, here)
    pace = None
    if seconds_per_step is not None:
        pace = Pace.of_step(seconds_per_step, config)
    elif machine == here and name is not None:
        pace = Pace.of_runs(root, name, str(here))
    rows, lengths = _measured(examples, tokenizer)
    splits = examples if hasattr(examples, "train") and hasattr(examples, "val") else None
    if train is None and splits is not None and name is not None and machine == here:
        train = trainer_of(name, splits)
    return ConfigForm(config, Situation(machine, shape, rows, lengths, pace), root, train)


class ConfigForm:
    """A config that a person can move. Made by `config_form`."""

    def __init__(self, config: TrainConfig, situation: Situation, root: Path, trainer: Trainer | None) -> None:
        self._value = self._begin = config
        self._situation, self._root = situation, root
        self._panel: Panel | None = None
        self.session = Session(trainer, root, self._told)

    @property
    def value(self) -> TrainConfig:
        """The settings as they stand; assign a config to move the sliders.

        Raises:
            ConfigError: what is assigned is no TrainConfig.
        """
        return self._value

    @value.setter
    def value(self, config: TrainConfig) -> None:
        """Move every control to `config`."""
        if not isinstance(config, TrainConfig):
            raise ConfigError(
                f"form.value wants a TrainConfig, not {type(config).__name__}. Try form.value.replace(lora_r=8)."
            )
        self._value = config
        if self._panel is not None:
            self._panel.show(config)
            self._panel.refuse("", "")
        self._refresh()

    @property
    def consequences(self) -> Consequences:
        """What the settings mean now."""
        return consequences(self._value, self._situation)

    @property
    def runs(self) -> RunsTable:
        """The runs below the form's folder."""
        return RunsTable.of(self._root)

    @property
    def panel(self) -> Any:
        """The widgets, made on first use."""
        if self._panel is None:
            self._panel = Panel(
                _targets(self._situation.shape, self._value), self._act, self.session.trainer is not None
            )
            self._panel.show(self._value)
            self._refresh()
            self._panel.runs(self.runs)
        return self._panel.root

    def set(self, name: str, value: Any) -> None:
        """Move one setting; a value that is not allowed is refused, and its reason stands in the panel."""
        try:
            self._value = self._value.replace(**{name: value})
        except ConfigError as error:
            if self._panel is None:
                raise
            self._panel.refuse(name, str(error))
            self._panel.rows[name].show(getattr(self._value, name))
            return
        if self._panel is not None:
            self._panel.refuse("", "")
            self._panel.rows[name].show(value)
        self._refresh()

    def start(self) -> None:
        """What Train does: train these settings in a thread, or go on where they were stopped."""
        self.session.start(self._value)
        self._told(False)

    def stop(self) -> None:
        """What Stop does: finish the update in progress, save, and leave a run that can go on."""
        self.session.stop()
        self._told(False)

    def measure(self) -> None:
        """What Measure does: a few real updates under these settings, in a folder that is thrown away."""
        self.session.measure(self._value)
        self._told(False)

    def _act(self, what: str, argument: Any) -> None:
        """Do what a person asked for; a refusal becomes the panel's message."""
        try:
            if what == "set":
                self.set(*argument)
            elif what == "preset":
                self.value = presets.variant(self._value, argument)
            elif what == "reset":
                self.value = self._begin
            else:
                {"train": self.start, "stop": self.stop, "measure": self.measure}[what]()
        except FtkitError as error:
            self.session.message, self.session.error = str(error), error
            self._told(False)

    def _refresh(self) -> None:
        if self._panel is not None:
            self._panel.mean(self.consequences)

    def _told(self, ended: bool) -> None:
        if ended and self.session.pace is not None:
            self._situation = dataclasses.replace(self._situation, pace=self.session.pace)
        if self._panel is None:
            return
        self._panel.running(self.session.running and not ended)
        self._panel.progress(self.session)
        if ended:
            self._panel.runs(self.runs)
            self._refresh()

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        display(self.panel if learn.front_end() else HTML(self._repr_html_()))

    def __str__(self) -> str:
        return f"{self._value.changed()}\n{self.consequences}"

    def _repr_html_(self) -> str:
        parts = []
        for group, specs in groups().items():
            cells = "".join(
                f"<tr><td><code>{s.name}</code></td><td>{html.escape(str(getattr(self._value, s.name)))}</td>"
                f"<td>{html.escape(s.metadata['help'])}</td></tr>"
                for s in specs
            )
            parts.append(f'<tr><th colspan="3" style="text-align:left">{group}</th></tr>{cells}')
        return f"<table>{''.join(parts)}</table>{self.consequences._repr_html_()}"


def _named_shape(model: Any, here: Hardware) -> tuple[str | None, ModelShape]:
    """The model's name, where it has one that can be loaded, and its shape."""
    from ftkit import models

    if isinstance(model, ModelShape):
        return None, model
    if model is None or isinstance(model, str | Path):
        name = models.default_model(here) if model is None else str(model)
        return name, shapes.find(name)
    return None, ModelShape.from_config(getattr(model, "config", model))


def _measured(examples: Any, tokenizer: Any) -> tuple[int | None, tuple[int, ...]]:
    """How many rows there are to train on, and the lengths of a sample of them in tokens."""
    if examples is None or isinstance(examples, int):
        return examples, ()
    rows: Sequence[Any] = getattr(examples, "train", examples)
    if tokenizer is None:
        return len(rows), ()
    from ftkit import template

    stride = max(1, len(rows) // _SAMPLED_ROWS)
    return len(rows), tuple(
        len(template.tokenize(rows[i], tokenizer)["input_ids"]) for i in range(0, len(rows), stride)
    )


def _targets(shape: ModelShape | None, config: TrainConfig) -> tuple[str, ...]:
    """Names of weight matrices to choose from: the model's, and those that the config names."""
    names = [matrix.name for matrix in shape.matrices] if shape is not None else []
    return tuple(dict.fromkeys((*names, *config.target_modules)))
