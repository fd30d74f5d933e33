"""The arithmetic of memory: how many bytes each part of a training step needs, from a shape and how a step is computed.

Weights, adapter, gradients and optimiser are counted exactly. Activations follow from the layers' widths; how often a
logit or an attention score stands in memory at once was fitted to public measurements (`benchmarks/memory_fit.py`).
Knows no settings object, no card and no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ftkit.errors import ConfigError
from ftkit.hardware import GIB
from ftkit.memory.shapes import ModelShape

# QLoRA paper, section 3: a scale for 64 weights in 32 bits, or in 8 bits with scales of its own
NF4_BITS, NF4_DOUBLE_BITS = 4.5, 4.127
CHUNK_TOKENS = 256  # TRL's chunked loss; litgpt's is 128, Unsloth's takes what is free
CPU_CHUNK_TOKENS = 64  # to which `training` sets TRL's on a CPU
METHODS = ("qlora", "lora", "full")
LOSS_PATHS = ("full", "fast", "chunked")
# Bytes of states a parameter: so many times its own width, and so many beside.
OPTIMISER_BYTES = {
    "adamw_torch": (2.0, 0.0),
    "adamw_torch_fused": (2.0, 0.0),
    "sgd": (0.0, 0.0),
    "adamw_8bit": (0.0, 2.03),
    "paged_adamw_8bit": (0.0, 2.03),
}


@dataclass(frozen=True, kw_only=True)
class Constants:
    """What arithmetic alone does not say; written by `benchmarks/memory_fit.py`, which refits them."""

    logits: float = 3.49  # 4-byte copies of the logits alive at once, where the loss is computed on all of them
    logits_wide: float = 4.01  # the same where the head computes in 32-bit
    logits_fast: float = 2.02  # the same under a cross-entropy kernel that overwrites them
    scores: float = 13.95  # bytes an attention score, where the scores are written out ("eager")
    scores_wide: float = 17.75  # the same where the stream is kept in 32-bit
    kept: float = 1.02  # what a layer keeps for the backward pass without checkpointing, over what it computes


FITTED = Constants()


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """How a step is computed: everything but the shape that decides its memory."""

    method: str
    micro_batch: int
    length: int
    r: int = 16
    target_modules: tuple[str, ...] = ()
    use_dora: bool = False
    double_quant: bool = True
    compute_bytes: int = 2
    adapter_bytes: int = 4
    optim: str = "adamw_torch"
    checkpointing: bool = True
    offloaded: bool = False
    loss_path: str = "full"
    eager: bool = False
    upcast: bool = False
    master_weights: bool = False
    accumulates: bool = False
    chunk_tokens: int = CHUNK_TOKENS

    def __post_init__(self) -> None:
        wrong = []
        for name, known in (("method", METHODS), ("loss_path", LOSS_PATHS), ("optim", tuple(OPTIMISER_BYTES))):
            if (value := getattr(self, name)) not in known:
                wrong.append(f"{name}={value!r} is not one of {', '.join(known)}.")
        for name in ("micro_batch", "length", "r", "chunk_tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                wrong.append(f"{name}={value!r}: wanted a whole number of 1 or more.")
        if wrong:
            raise ConfigError("\n".join(wrong))

    @property
    def tokens(self) -> int:
        """Tokens in memory at once."""
        return self.micro_batch * self.length


@dataclass(frozen=True)
class MemoryPart:
    """One line of the bill: what, how many bytes, how they come about, and whether they grow with the tokens."""

    name: str
    bytes: float
    how: str
    grows: bool = False

    @property
    def gib(self) -> float:
        """The same in GiB."""
        return self.bytes / GIB


def peak_gib(shape: ModelShape, setup: TrainingSetup, constants: Constants = FITTED) -> float:
    """The peak of a step in GiB: of its moments, the one that needs most."""
    return max(total(moment) for moment in moments(shape, setup, constants)) / GIB


def moments(shape: ModelShape, setup: TrainingSetup, constants: Constants = FITTED) -> list[list[MemoryPart]]:
    """The moments of a step that may be its peak: the backward pass, and in full fine-tuning the weight update.

    The parts of a moment add up to what it needs; what is gone by then is not in its list.
    """
    weights, passing = _weights(shape, setup), _activations(shape, setup, constants)
    count, (follows, fixed) = trainable(shape, setup), OPTIMISER_BYTES[setup.optim]
    if setup.method != "full":
        width = setup.adapter_bytes
        how = f"{count:,} parameters x {width} + {width} bytes"
        adapter = MemoryPart("adapter and its gradients", 2 * width * count, how)
        found = [[*weights, adapter, _counted("optimiser states", count, follows * width + fixed), *passing]]
    else:
        width = 4 if setup.master_weights else setup.compute_bytes
        master = [_counted("master weights", count, 4)] if setup.master_weights else []
        always = [*weights, *master, _counted("optimiser states", count, follows * width + fixed)]
        gradients = _counted("gradients", count, setup.compute_bytes)
        # Adam's temporary is as large as the gradients; the other optimisers update in place
        temporary = setup.compute_bytes if setup.optim == "adamw_torch" else 0
        # gradients of earlier micro-batches wait while the next is computed
        waiting = [gradients] if setup.accumulates else []
        update = [*always, gradients, _counted("the update's temporary", count, temporary)]
        found = [update, [*always, *waiting, *passing]]
    return [[part for part in moment if part.bytes > 0] for moment in found]


def total(parts: Sequence[MemoryPart]) -> float:
    """Bytes in all."""
    return sum(part.bytes for part in parts)


def trainable(shape: ModelShape, setup: TrainingSetup) -> int:
    """Parameters that learn."""
    if setup.method == "full":
        return shape.parameters
    return shape.lora_parameters(setup.r, setup.target_modules, use_dora=setup.use_dora)


def _counted(name: str, count: int, each: float) -> MemoryPart:
    return MemoryPart(name, each * count, f"{count:,} parameters x {each:g} bytes")


def _weights(shape: ModelShape, setup: TrainingSetup) -> list[MemoryPart]:
    if setup.method != "qlora":
        return [_counted("weights", shape.parameters, setup.compute_bytes)]
    bits, count = NF4_DOUBLE_BITS if setup.double_quant else NF4_BITS, shape.matrix_parameters
    rest = 4 if setup.upcast else setup.compute_bytes
    return [
        MemoryPart("weights in 4-bit", bits / 8 * count, f"{count:,} parameters x {bits:g} bits"),
        _counted("embedding, head, norms", shape.other_parameters, rest),
    ]


def _activations(shape: ModelShape, setup: TrainingSetup, constants: Constants) -> list[MemoryPart]:
    """With checkpointing every layer's input is kept and the dearest moment counts; without, all layers are kept."""
    layer, logits, scores = _layer(shape, setup), _logits(shape, setup, constants), 0.0
    if setup.eager:  # at work, or what the backward pass keeps: softmax in 32-bit and a cast
        at_work = constants.scores_wide if setup.upcast else constants.scores
        each = at_work if setup.checkpointing else 4.0 + setup.compute_bytes
        scores = each * setup.micro_batch * shape.num_attention_heads * setup.length**2
    count, stream = shape.num_layers, 4 if setup.upcast else setup.compute_bytes
    if not setup.checkpointing:
        kept = constants.kept * count * layer
        return [
            MemoryPart("activations of all layers", kept, f"{count} layers, nothing recomputed", grows=True),
            MemoryPart("attention scores", count * scores, "written out in every layer", grows=True),
            logits,
        ]
    resident = 2 if setup.offloaded else count
    size = resident * setup.tokens * shape.hidden_size * stream
    how = f"{resident} layers x {setup.tokens:,} tokens x {shape.hidden_size} x {stream} bytes"
    inputs = MemoryPart("inputs of layers", size, how, grows=True)
    one = [
        MemoryPart("one layer at work", layer, "recomputed for its backward pass", grows=True),
        MemoryPart("attention scores", scores, "written out in that layer", grows=True),
    ]
    return [inputs, *max(one, [logits], key=total)]


def _layer(shape: ModelShape, setup: TrainingSetup) -> float:
    """Bytes that one layer computes: its intermediate results, and its inputs' copies that a 32-bit adapter casts."""
    norms = 9 if shape.rms_norm else 6  # an RMS norm works on a 32-bit copy of the stream
    wide = norms * shape.hidden_size + 3 * shape.queries + 2 * shape.keys
    wide += round(shape.feed_forwards) * shape.intermediate_size
    targets = shape.targets(setup.target_modules) if setup.method != "full" else ()
    copied = sum(matrix.inputs for matrix in targets)
    kept = 4 if setup.checkpointing else setup.compute_bytes  # a layer at work holds the cast; autocast a narrow copy
    # Unsloth, whose inputs are offloaded, casts inside its kernels
    casts = kept if setup.adapter_bytes > setup.compute_bytes and not setup.offloaded else 0
    return float(setup.tokens * (setup.compute_bytes * wide + casts * copied))


def _logits(shape: ModelShape, setup: TrainingSetup, constants: Constants) -> MemoryPart:
    wide = constants.logits_wide if setup.upcast or setup.compute_bytes == 4 else constants.logits
    copies = constants.logits_fast if setup.loss_path == "fast" else wide
    tokens = min(setup.tokens, setup.chunk_tokens) if setup.loss_path == "chunked" else setup.tokens
    how = f"{tokens:,} tokens x {shape.vocab_size:,} words x {4 * copies:.3g} bytes"
    last_states = 4 * setup.tokens * shape.hidden_size
    return MemoryPart("logits and their loss", 4 * copies * tokens * shape.vocab_size + last_states, how, grows=True)
