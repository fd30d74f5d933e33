"""Going on from an adapter: which one is meant, and whether a run under these settings can begin with its weights.

Everything is looked at before the model is touched, so that a refusal leaves it as it was.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftkit import files, models
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, ModelError
from ftkit.runs import Run

FRESH = "none"  # what a run notes that begins with an adapter of its own

# By PEFT's name: ours, and what PEFT takes where its file says nothing.
_KNOBS = {
    "r": ("lora_r", None),
    "lora_alpha": ("lora_alpha", None),
    "use_rslora": ("use_rslora", False),
    "use_dora": ("use_dora", False),
}
# An adapter can differ from layer to layer, or train more than LoRA: no setting of ours says so.
_FOREIGN = ("rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform", "trainable_token_indices")


@dataclass(frozen=True)
class Start:
    """The adapter that a run begins with: its folder, what it says of itself, and the digest of its weights."""

    folder: Path
    known: models.AdapterFacts = field(repr=False)
    digest: str

    @classmethod
    def find(cls, init_from: str | Path | Run) -> "Start":
        """A run's adapter, that of a run's folder, or the folder of an adapter itself.

        Raises:
            MissingArtifact: there is none.
            ModelError: it is damaged, or holds values that are no numbers.
        """
        run = init_from if isinstance(init_from, Run) else Run(Path(init_from))
        is_run = isinstance(init_from, Run) or (run / "config.yaml").is_file()
        folder = run.require("adapter") if is_run else run.path
        known = models.adapter_facts(folder)
        return cls(folder, known, files.digest(folder / "adapter_model.safetensors")[:12])

    def refuse_unfit(self, model: Any, name: str, config: TrainConfig, run: Run) -> None:
        """Compare the adapter to the model, the settings and the run that are to go on from it.

        Args:
            model: the base model, with or without an adapter of its own.
            name: of the base model.
            config: settings of the run that begins.
            run: where it begins.

        Raises:
            ConfigError: names everything in which they differ, both values, and what to do.
        """
        if self.folder.resolve().is_relative_to(run.path.resolve()):
            raise ConfigError(
                f"init_from={str(self.folder)!r} lies in the run that would replace it. Choose another run name for "
                "the second training; the first stays as it is."
            )
        problems = [*self._base(model, name), *self._settings(config)]
        problems = problems or list(self._coverage(model, config))  # other targets would be told once more
        if problems:
            raise ConfigError(
                f"init_from={str(self.folder)!r} cannot be gone on from. {' '.join(problems)} Without init_from the "
                "run begins with a fresh adapter."
            )

    def _base(self, model: Any, name: str) -> Iterator[str]:
        """Another base model: by values of its weights where the adapter's folder has them, else by its name."""
        then = self.known.base
        try:
            compared = models.refuse_other_base(self.folder, model, name)
        except ModelError as error:
            yield str(error)
            return
        if not compared and then != name:
            yield (
                f"Its base model is {then!r}, and this one is {name!r}: on other weights an adapter is noise. Use "
                f"models.load({then!r})."
            )

    def _settings(self, config: TrainConfig) -> Iterator[str]:
        """Settings that the config says otherwise, and what the adapter has beyond any setting."""
        there = self.known.settings
        if there.get("peft_type", "LORA") != "LORA":
            yield f"It is of the kind {there['peft_type']}, and LoRA is trained here."
        says = {knob: there.get(name, default) for name, (knob, default) in _KNOBS.items()}
        other = {knob: value for knob, value in says.items() if value != getattr(config, knob)}
        if set(self.known.targets) != set(config.target_modules):
            other["target_modules"] = self.known.targets
        if other:
            told = ", ".join(f"{knob} ({value} there, {getattr(config, knob)} here)" for knob, value in other.items())
            wanted = ", ".join(f"{knob}={value!r}" for knob, value in other.items())
            yield f"Other settings: {told}. Use config.replace({wanted})."
        if foreign := [name for name in _FOREIGN if there.get(name)]:
            told = ", ".join(f"{name} ({there[name]} there, none here)" for name in foreign)
            yield f"It has what no setting says: {told}."

    def _coverage(self, model: Any, config: TrainConfig) -> Iterator[str]:
        """Layers of the model that the adapter lacks, layers that it alone has, and matrices of another shape."""
        there, wanted = self.known.matrices, {}
        for name, module in model.named_modules():
            if name.rsplit(".", 1)[-1] in config.target_modules and hasattr(module, "in_features"):
                path = name.removeprefix("base_model.model.")
                wanted[f"{path}.lora_A"] = (config.lora_r, module.in_features)
                wanted[f"{path}.lora_B"] = (module.out_features, config.lora_r)
        other = {name for name in there.keys() | wanted.keys() if there.get(name) != wanted.get(name)}
        if other:
            first = min(other)
            yield (
                f"{len(other)} of {len(wanted)} matrices do not fit, such as {first} ({there.get(first, 'absent')} "
                f"there, {wanted.get(first, 'absent')} here). Load the base model that it was trained on."
            )
