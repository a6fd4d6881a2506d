"""Which layers of a network train and which are left out, by their roles: for the log and for run.json."""

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import nn

from ..types import Record
from ..weights.row_parts import RowPart
from .roles import Role, roles

SHOWN = 8
"""Names of what stands outside of the blocks in a line of the log."""


def layers_of(module: nn.Module, trained: Sequence[str], told: Mapping[str, Role] | None = None) -> Record:
    """Counts of a network's layers by role, {trained: {role: layers}, left_out: {role: layers}, outside: names at the top}.

    `trained` are the paths with an adapter. A Linear counts as trained if it or any of its rows does. `told` are the roles where they
    are known already.
    """
    told = roles(module) if told is None else told
    wholes = {path.rpartition(".")[0] if isinstance(module.get_submodule(path), RowPart) else path for path in trained}
    left_out = told.keys() - wholes
    outside = dict.fromkeys(path.split(".")[0] for path in told if path in left_out and told[path] == "outside")
    return {
        "trained": dict(Counter(told.get(path) or _other(module.get_submodule(path)) for path in sorted(wholes))),
        "left_out": dict(Counter(told[path] for path in sorted(left_out))),
        "outside": list(outside),
    }


def _other(layer: nn.Module) -> str:
    """The role of a layer that is no Linear; norms and tables train in full fine-tunes only."""
    return "convolution" if isinstance(layer, nn.Conv2d) else "norms and tables"


def layers_text(layers: Record) -> str:
    """A line of the log: "trains 140 attention, 84 mlp; left out: 40 outside of the blocks (first, tproj, …)"."""
    names = layers["outside"]
    around = f" of the blocks ({', '.join([*names[:SHOWN], *(['…'] if len(names) > SHOWN else [])])})" if names else ""
    left = [f"{count} {role}{around if role == 'outside' else ''}" for role, count in layers["left_out"].items()]
    trained = ", ".join(f"{count} {role}" for role, count in layers["trained"].items())
    return f"layers: trains {trained}; left out: {', '.join(left) or 'none'}"
