"""Going on from an adapter: which one is meant, and whether a run under these settings can begin with its weights.

Everything is looked at before the model is touched, so that a refusal leaves it as it was.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftkit import files, models
from ftkit.config import TrainConfig
from ftkit.errors import ConfigError, FtkitError
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
_NUMBERS = ("load_in_4bit", "bnb_4bit_use_double_quant", "dtype")  # in other formats the same weights look otherwise


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

    def refuse_unfit(self, model: Any, config: TrainConfig, facts: dict[str, Any], run: Run) -> None:
        """Compare the adapter to the model, the settings and the run that are to go on from it.

        Args:
            model: the base model, with or without an adapter of its own.
            config: settings of the run that begins.
            facts: names and digests of what it trains on.
            run: where it begins.

        Raises:
            ConfigError: names everything in which they differ, both values, and what to do.
        """
        if self.folder.resolve().is_relative_to(run.path.resolve()):
            raise ConfigError(
                f"init_from={str(self.folder)!r} lies in the run that would replace it. Choose another run name for "
                "the second training; the first stays as it is."
            )
        problems = [*self._base(config, facts), *self._settings(config)]
        problems = problems or list(self._coverage(model, config))  # other targets would be told once more
        if problems:
            raise ConfigError(
                f"init_from={str(self.folder)!r} cannot be gone on from. {' '.join(problems)} Without init_from the "
                "run begins with a fresh adapter."
            )

    def _base(self, config: TrainConfig, facts: dict[str, Any]) -> Iterator[str]:
        """Another base model: by the digest of its weights where the adapter's run noted one, else by name."""
        then, noted, now = self.known.base, self._noted(config, facts), facts["base_weights"]
        if noted == now:
            return
        if then != facts["base_model"]:
            yield (
                f"Its base model is {then!r}, and this one is {facts['base_model']!r}: on other weights an adapter is "
                f"noise. Use models.load({then!r})."
            )
        elif noted:
            yield (
                f"Under the name {then!r} it was trained on other weights ({noted} there, {now} here). Fetch that base "
                "model again."
            )

    def _noted(self, config: TrainConfig, facts: dict[str, Any]) -> str:
        """The digest of the base weights that the adapter's run noted; "" where it can be compared with none of now."""
        run = Run(self.folder.parent)
        try:
            noted, before = run.facts["train"], TrainConfig.load(run / "config.yaml")
        except (FtkitError, LookupError):  # an adapter that stands alone
            return ""
        same = noted.get("backend") == facts["backend"]
        same &= all(getattr(before, name) == getattr(config, name) for name in _NUMBERS)
        return str(noted.get("base_weights", "")) if same else ""

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
