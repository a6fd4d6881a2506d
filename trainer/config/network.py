"""Options of the adapter: the [network] table."""

from dataclasses import MISSING, dataclass, field, fields
from typing import Annotated, Literal

from ..choices import ADAPTERS
from .checks import OneOf
from .section import Section, require

LOFTQ = "loftq"
"""The initial values that need a base which is quantized here."""
WHOLE = "full"
"""The kind that trains the network's own weights, without an adapter."""
OF_WHOLE = ("kind", "target_modules", "exclude_modules", "module_rates")
"""The options that a full fine-tune has."""
ONLY_SOME = (
    "dropout",
    "rslora",
    "rank_dropout",
    "scale_weight_norms",
    "loraplus_lr_ratio",
    "init",
    "tucker",
    "dylora_unit",
)
"""Options that some kinds have: those whose entry in `choices.ADAPTERS` names them."""
WITHOUT_ALPHA = ("oft", "boft", "diff", "ia3", "full")
"""Kinds without a scale."""
BY_BASE = ("dora", "glora", "oft", "boft", "ia3")
"""Kinds whose change of a weight depends on that weight."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(Section, table="network"):
    """The adapter: its type, rank and target modules."""

    kind: Annotated[str, OneOf(ADAPTERS)] = "lora"
    """LoRA type: how the change of a weight is made up."""
    rank: int = 16
    """Rank (dimension) of the adapter. A higher one learns more and forgets more; 8 to 32 suits most concepts."""
    alpha: float | None = None
    """The adapter's change of a weight is scaled by alpha / rank; left out, alpha is the rank and the scale is 1."""
    rslora: bool = False
    """Scales by alpha / sqrt(rank) instead, which keeps large ranks trainable (arXiv 2312.03732). lora and dora only."""
    target_modules: str = "default"
    """Modules of the base model that get an adapter, or with full are trained (default: all of the network): a preset of the family (attention, attention+mlp, all, transformer and conv for UNets …), or "regex:" and a pattern for module paths. default: attention, feed-forward and modulation in the blocks of a transformer, attention, feed-forward and convolutions of a UNet."""
    exclude_modules: str = ""
    """Regular expression; modules whose path matches get no adapter."""
    dropout: float = 0.0
    """Probability that an input of the adapter is set to zero in a training step. lora and dora only."""
    lokr_factor: int = -1
    """Block size of LoKr's small factor; -1 takes the one that splits a weight most evenly."""
    lokr_factors: dict[str, int] = field(default_factory=dict)
    """{regular expression: factor} for modules whose path matches, in place of lokr_factor; of several the last counts."""
    lokr_full_matrix: bool = False
    """LoKr keeps both factors as whole matrices, whatever the rank is; alpha / rank is then 1 (LyCORIS' full_matrix)."""
    lokr_decompose_both: bool = False
    """LoKr makes its small factor of two matrices of the rank, too, where that is smaller."""
    conv_rank: int = 0
    """Rank of convolutions larger than 1 x 1 (kohya's conv_dim); 0 takes rank."""
    conv_alpha: float | None = None
    """alpha of convolutions larger than 1 x 1; left out, alpha, or where that is left out too, their rank."""
    module_ranks: dict[str, int] = field(default_factory=dict)
    """{regular expression: rank} for modules whose path matches; of several the last counts."""
    module_alphas: dict[str, float] = field(default_factory=dict)
    """{regular expression: alpha} for modules whose path matches; of several the last counts."""
    module_rates: dict[str, float] = field(default_factory=dict)
    """{regular expression: factor on the learning rate} for modules whose path matches; of several the last counts."""
    loraplus_lr_ratio: float = 1.0
    """LoRA+ (arXiv 2402.12354): factor on the learning rate of the matrices that begin at zero; 16 is usual, 1 switches it off. lora and dora only."""
    rank_dropout: float = 0.0
    """Probability that one of the adapter's ranks is left out for an image in a training step. lora only."""
    module_dropout: float = 0.0
    """Probability that a module's adapter is left out of a forward pass in training; one always stays."""
    scale_weight_norms: float = 0.0
    """After each step, changes of a weight with a larger norm than this are scaled down to it (kohya's max norm; 1 is usual), and the log has their number as keys_scaled; 0 switches it off. lora only."""
    tucker: bool = False
    """Convolutions larger than 1 x 1 get a small kernel between two matrices (LyCORIS' use_tucker). lora and loha only."""
    dylora_unit: int = 0
    """DyLoRA: each step uses the first ranks up to a number that is drawn, and trains the last dylora_unit of them, so that any first units are a LoRA of their own. It has to divide the rank; 0 switches it off. lora only."""
    init: Literal["default", "gaussian", "singular", "pissa", "olora", "loftq"] = "default"
    """Initial values of LoRA. default: the first matrix is uniform within 1 / sqrt(width of the input) (Kaiming), the second one zero. gaussian: normal with a standard deviation of 1 / rank. singular: the weight's largest right singular vectors. pissa (largest singular values) and olora (QR): both matrices are parts of the weight; the base stays as it is, the product they begin with is taken off, and files have twice the rank. loftq (arXiv 2310.08659, one iteration): both matrices begin as what quantizing the weight has lost, and a frozen copy of that corrects the quantized base; needs model.quantize; files have twice the rank and are for the base as it is, not quantized. lora only."""
    train_norm: bool = False
    """Trains the weights and biases of the network's norms too (LyCORIS' train_norm), for UNets; other networks have no LayerNorm or GroupNorm with a weight. Files then have native names."""
    init_from: str = ""
    """A LoRA file that training starts from; its type, rank and target modules must be those of this table."""

    def check(self) -> None:
        require(self.rank >= 1, "network.rank", self.rank, "use 1 or more (16 is usual)")
        require(self.rank <= 16_384, "network.rank", self.rank, "use 16384 or less (16 is usual)")
        remedy = "use a number above 0, or leave it out for alpha = rank"
        require(self.alpha is None or self.alpha > 0, "network.alpha", self.alpha, remedy)
        require(0 <= self.dropout < 1, "network.dropout", self.dropout, "use 0 up to below 1")
        known = self.lokr_factor == -1 or self.lokr_factor >= 1
        require(known, "network.lokr_factor", self.lokr_factor, "use -1 (the most even one) or 1 and more")
        read = ADAPTERS[self.kind].options
        for name in ONLY_SOME:
            remedy = f"{self.kind} has no {name} here; leave it out, or use lora"
            is_default = getattr(self, name) == type(self).__dataclass_fields__[name].default
            require(is_default or name in read, f"network.{name}", getattr(self, name), remedy)
        for pattern, factor in self.lokr_factors.items():
            require(factor == -1 or factor >= 1, f"network.lokr_factors.{pattern!r}", factor, "use -1, or 1 and more")
        require(self.dylora_unit >= 0, "network.dylora_unit", self.dylora_unit, "use 0 (off) or a divisor of the rank")
        self._check_modules()
        self._check_start()
        self._check_whole()

    def _check_whole(self) -> None:
        """A full fine-tune has weights and their rates, and nothing else of an adapter's."""
        if self.kind != WHOLE:
            return
        for one in fields(self):
            value = getattr(self, one.name)
            plain = one.default if one.default_factory is MISSING else one.default_factory()
            free = one.name in OF_WHOLE
            remedy = (
                "leave it out: a full fine-tune changes the weights themselves, so that there is no adapter with a rank"
            )
            require(free or value == plain, f"network.{one.name}", value, remedy)

    def _check_start(self) -> None:
        """What initial values and forms of a kind do not go with."""
        if self.kind in WITHOUT_ALPHA:
            for name in ("alpha", "conv_alpha", "module_alphas"):
                require(
                    not getattr(self, name),
                    f"network.{name}",
                    getattr(self, name),
                    f"leave it out: {self.kind} has none",
                )
        if self.tucker and self.kind == "lora":
            for name in ("dropout", "rank_dropout", "scale_weight_norms", "dylora_unit"):
                remedy = "leave it out, or tucker: convolutions in that form have none"
                require(not getattr(self, name), f"network.{name}", getattr(self, name), remedy)
            require(self.init == "default", "network.init", self.init, "leave it out, or tucker")
        if self.kind == "dora":
            remedy = 'use default or gaussian, or kind = "lora"'
            require(self.init in ("default", "gaussian"), "network.init", self.init, remedy)
        if self.has_product:
            for name in ("rank_dropout", "scale_weight_norms", "dylora_unit", "init_from"):
                remedy = f"leave it out, or use another init than {self.init}"
                require(not getattr(self, name), f"network.{name}", getattr(self, name), remedy)
        if self.init != "default":
            remedy = "leave it out, or network.init"
            require(not self.init_from, "network.init_from", self.init_from, remedy)

    def _check_modules(self) -> None:
        """The values for convolutions and for single modules, and what happens to modules at random."""
        require(0 <= self.conv_rank <= 16_384, "network.conv_rank", self.conv_rank, "use 0 (rank) to 16384")
        remedy = "use a number above 0, or leave it out"
        require(self.conv_alpha is None or self.conv_alpha > 0, "network.conv_alpha", self.conv_alpha, remedy)
        for pattern, rank in self.module_ranks.items():
            require(1 <= rank <= 16_384, f"network.module_ranks.{pattern!r}", rank, "use 1 to 16384")
        for name in ("module_alphas", "module_rates"):
            for pattern, value in getattr(self, name).items():
                require(value > 0, f"network.{name}.{pattern!r}", value, "use a number above 0")
        for name in ("rank_dropout", "module_dropout"):
            require(0 <= getattr(self, name) < 1, f"network.{name}", getattr(self, name), "use 0 up to below 1")
        remedy = "use 1 (off) or more (16 is usual)"
        require(self.loraplus_lr_ratio >= 1, "network.loraplus_lr_ratio", self.loraplus_lr_ratio, remedy)
        remedy = "use 0 (off) or more (1 is usual)"
        require(self.scale_weight_norms >= 0, "network.scale_weight_norms", self.scale_weight_norms, remedy)
        remedy = "whole matrices have no rank; leave conv_rank, conv_alpha, module_ranks and module_alphas out"
        require(not self.lokr_full_matrix or self.has_one_rank, "network.lokr_full_matrix", True, remedy)
        remedy = "whole matrices are not decomposed; leave one of them out"
        both = self.lokr_full_matrix and self.lokr_decompose_both
        require(not both, "network.lokr_decompose_both", self.lokr_decompose_both, remedy)

    @property
    def has_product(self) -> bool:
        """Whether the adapter begins with a product that is taken off, so that files have twice the rank."""
        return self.init in ("pissa", "olora", LOFTQ)

    @property
    def is_loftq(self) -> bool:
        """Whether initial values are made of what quantizing the base has lost."""
        return self.init == LOFTQ

    @property
    def has_one_rank(self) -> bool:
        """Whether all modules have the same rank and alpha."""
        return not (self.conv_rank or self.conv_alpha or self.module_ranks or self.module_alphas)


def refuse_whole(network: NetworkConfig) -> None:
    """Raise ConfigError for a full fine-tune, in the graph."""
    remedy = "it trains the base model's own weights, and in the graph these are the MODEL that ComfyUI and other nodes go on using: train from the command line (lora-loom train FILE), or a LoRA here"
    require(network.kind != WHOLE, "network.kind", network.kind, remedy)


def check_loftq(network: NetworkConfig, quantize: str, matmul: str) -> None:
    """Raise ConfigError for LoftQ without a base that is quantized for the run. The other two are the settings of the base model."""
    remedy = "it corrects a base that is quantized for the run: set model.quantize (nf4, int4 …)"
    if matmul != "off":
        remedy = f"it corrects what model.quantize makes, and matmul = {matmul!r} keeps other numbers: use quantize, or another init"
    require(network.init != LOFTQ or (quantize != "none" and matmul == "off"), "network.init", network.init, remedy)
