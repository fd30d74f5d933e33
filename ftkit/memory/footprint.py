"""The arithmetic of memory: how many bytes each part of a training step needs, from a shape and a way of training.

Weights, adapter, gradients and optimiser are counted exactly. Activations follow from the layers' widths; how often a
logit or an attention score stands in memory at once was fitted to public measurements (`benchmarks/memory_fit.py`).
Knows no settings object, no device table and no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ftkit.errors import ConfigError
from ftkit.memory.shapes import Matrix, ModelShape

GIB = 1024**3

NF4_BITS, NF4_DOUBLE_BITS = (
    4.5,
    4.127,
)  # QLoRA paper, section 3: a scale for 64 weights in 32 bits, or in 8 bits of its own

CHUNK_TOKENS = 256  # TRL's chunked loss; litgpt's is 128, Unsloth's takes what is free

METHODS = ("qlora", "lora", "full")

LOSS_PATHS = ("full", "fast", "chunked")

OPTIMISER_BYTES = {
    "adamw_torch": (2.0, 0.0),
    "adamw_torch_fused": (2.0, 0.0),
    "sgd": (0.0, 0.0),
    "adamw_8bit": (0.0, 2.03),
    "paged_adamw_8bit": (0.0, 2.03),
}


@dataclass(frozen=True, kw_only=True)
class Constants:
    """What arithmetic alone does not say; written by `benchmarks/memory_fit.py`, which refits them.

    Attributes:
        logits: 4-byte copies of the logits alive at once, where the loss is computed on all of them.
        logits_wide: the same where the head computes in 32-bit.
        logits_fast: the same under a cross-entropy kernel that overwrites them.
        scores: bytes an attention score, where the scores are written out ("eager").
        scores_wide: the same where the stream is kept in 32-bit.
        kept: what a layer keeps for the backward pass without checkpointing, over what it computes.
    """

    logits: float = 3.49
    logits_wide: float = 4.01
    logits_fast: float = 2.02
    scores: float = 13.95
    scores_wide: float = 17.75
    kept: float = 1.02


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
        wrong = [f"method={self.method!r} is not one of {', '.join(METHODS)}."] if self.method not in METHODS else []
        if self.loss_path not in LOSS_PATHS:
            wrong.append(f"loss_path={self.loss_path!r} is not one of {', '.join(LOSS_PATHS)}.")
        if self.optim not in OPTIMISER_BYTES:
            wrong.append(f"optim={self.optim!r} is not one of {', '.join(OPTIMISER_BYTES)}.")
        wrong += [
            f"{name}={value!r}: wanted a whole number of 1 or more."
            for name, value in (
                ("micro_batch", self.micro_batch),
                ("length", self.length),
                ("r", self.r),
                ("chunk_tokens", self.chunk_tokens),
            )
            if isinstance(value, bool) or not isinstance(value, int) or value < 1
        ]
        if wrong:
            raise ConfigError("\n".join(wrong))

    @property
    def tokens(self) -> int:
        """Tokens in memory at once."""
        return self.micro_batch * self.length


@dataclass(frozen=True)
class Term:
    """One line of the bill: what, how many bytes, how they come about, and whether they grow with the tokens."""

    name: str
    bytes: float
    how: str
    grows: bool = False


def terms(shape: ModelShape, way: TrainingSetup, constants: Constants = FITTED) -> list[Term]:
    """The parts of a step's peak, which add up to it; parts that are gone by then are not in the list."""
    return max(moments(shape, way, constants), key=total)


def moments(shape: ModelShape, way: TrainingSetup, constants: Constants = FITTED) -> list[list[Term]]:
    """The moments of a step that may be its peak: the backward pass, and in full fine-tuning the weight update."""
    always = [*_weights(shape, way), *(_full(shape, way) if way.method == "full" else _adapter(shape, way))]
    found = [_activations(shape, way, constants)]
    if way.method == "full":
        update = _update(shape, way)
        held = (
            [update[0]] if way.accumulates else []
        )  # gradients of earlier micro-batches wait while the next is computed
        found = [update, [*held, *found[0]]]
    return [[term for term in [*always, *moment] if term.bytes > 0] for moment in found]


def total(parts: Sequence[Term]) -> float:
    """Bytes in all."""
    return sum(part.bytes for part in parts)


def trainable(shape: ModelShape, way: TrainingSetup) -> int:
    """Parameters that learn."""
    if way.method == "full":
        return shape.parameters
    return shape.lora_parameters(way.r, way.target_modules, use_dora=way.use_dora)


def _weights(shape: ModelShape, way: TrainingSetup) -> list[Term]:
    if way.method != "qlora":
        return [
            Term(
                "weights",
                way.compute_bytes * shape.parameters,
                f"{shape.parameters:,} parameters x {way.compute_bytes} bytes",
            )
        ]
    bits = NF4_DOUBLE_BITS if way.double_quant else NF4_BITS
    rest = 4 if way.upcast else way.compute_bytes
    return [
        Term(
            "weights in 4-bit",
            bits / 8 * shape.matrix_parameters,
            f"{shape.matrix_parameters:,} parameters x {bits:g} bits",
        ),
        Term(
            "embedding, head, norms",
            rest * shape.other_parameters,
            f"{shape.other_parameters:,} parameters x {rest} bytes",
        ),
    ]


def _adapter(shape: ModelShape, way: TrainingSetup) -> list[Term]:
    count, width = trainable(shape, way), way.adapter_bytes
    follows, fixed = OPTIMISER_BYTES[way.optim]
    states = follows * width + fixed
    return [
        Term("adapter and its gradients", 2 * width * count, f"{count:,} parameters x {width} + {width} bytes"),
        Term("optimiser states", states * count, f"{count:,} parameters x {states:g} bytes"),
    ]


def _full(shape: ModelShape, way: TrainingSetup) -> list[Term]:
    count = shape.parameters
    follows, fixed = OPTIMISER_BYTES[way.optim]
    states = follows * (4 if way.master_weights else way.compute_bytes) + fixed
    master = [Term("master weights", 4 * count, f"{count:,} parameters x 4 bytes")] if way.master_weights else []
    return [*master, Term("optimiser states", states * count, f"{count:,} parameters x {states:g} bytes")]


def _update(shape: ModelShape, way: TrainingSetup) -> list[Term]:
    """The moment of the weight update: all gradients, and Adam's temporary of the same size."""
    size = float(way.compute_bytes * shape.parameters)
    how = f"{shape.parameters:,} parameters x {way.compute_bytes} bytes"
    temporary = size if way.optim == "adamw_torch" else 0.0  # the others update in place
    return [Term("gradients", size, how), Term("the update's temporary", temporary, how)]


def _activations(shape: ModelShape, way: TrainingSetup, constants: Constants) -> list[Term]:
    """With checkpointing every layer's input is kept and the dearest moment counts; without, all layers are kept."""
    layer, scores, logits = (
        _layer(shape, way),
        _scores(shape, way, constants, way.checkpointing),
        _logits(shape, way, constants),
    )
    stream = 4 if way.upcast else way.compute_bytes
    if not way.checkpointing:
        count = shape.num_layers
        return [
            Term(
                "activations of all layers", constants.kept * count * layer, f"{count} layers, nothing recomputed", True
            ),
            Term("attention scores", count * scores, "written out in every layer", True),
            logits,
        ]
    resident = 2 if way.offloaded else shape.num_layers
    kept = Term(
        "inputs of layers",
        resident * way.tokens * shape.hidden_size * stream,
        f"{resident} layers x {way.tokens:,} tokens x {shape.hidden_size} x {stream} bytes",
        True,
    )
    one = [
        Term("one layer at work", layer, "recomputed for its backward pass", True),
        Term("attention scores", scores, "written out in that layer", True),
    ]
    return [kept, *max(one, [logits], key=total)]


def _layer(shape: ModelShape, way: TrainingSetup) -> float:
    """Bytes that one layer computes: its intermediate results, and the copies of its inputs that a 32-bit adapter casts."""
    queries, keys = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    norms = 9 if shape.rms_norm else 6  # an RMS norm works on a 32-bit copy of the stream
    wide = norms * shape.hidden_size + 3 * queries + 2 * keys + (3 if shape.gated else 2) * shape.intermediate_size
    copied = _inputs(shape.targets(way.target_modules)) if way.method != "full" else 0
    kept = 4 if way.checkpointing else way.compute_bytes  # a layer at work holds the cast; autocast keeps a narrow copy
    # Unsloth, whose inputs are offloaded, casts inside its kernels
    casts = kept if way.adapter_bytes > way.compute_bytes and not way.offloaded else 0
    return float(way.tokens * (way.compute_bytes * wide + casts * copied))


def _inputs(targets: Sequence[Matrix]) -> int:
    return sum(matrix.inputs for matrix in targets)


def _scores(shape: ModelShape, way: TrainingSetup, constants: Constants, transient: bool) -> float:
    """Bytes of one layer's attention scores; what is kept for the backward pass is softmax in 32-bit and its cast."""
    if not way.eager:
        return 0.0
    each = (constants.scores_wide if way.upcast else constants.scores) if transient else 4.0 + way.compute_bytes
    return each * way.micro_batch * shape.num_attention_heads * way.length**2


def _logits(shape: ModelShape, way: TrainingSetup, constants: Constants) -> Term:
    wide = constants.logits_wide if way.upcast or way.compute_bytes == 4 else constants.logits
    copies = constants.logits_fast if way.loss_path == "fast" else wide
    tokens = min(way.tokens, way.chunk_tokens) if way.loss_path == "chunked" else way.tokens
    how = f"{tokens:,} tokens x {shape.vocab_size:,} words x {4 * copies:.3g} bytes"
    last_states = 4 * way.tokens * shape.hidden_size
    return Term("logits and their loss", 4 * copies * tokens * shape.vocab_size + last_states, how, True)
