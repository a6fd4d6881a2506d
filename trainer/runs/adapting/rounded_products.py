"""model.matmul: how far a run's gradients are from exact ones, measured once, before its first step."""

from ...training.loop import Training
from ...weights.packing.layers import exact_products, product_layers, rounding_of
from ..session import Host, Session
from .first_gradients import difference, first_gradients

KEY = "matmul"
"""Of run.json: {"layers": how many, "weights": …, "gradients": …}, errors as norms relative to the exact ones."""


def measure_products(session: Session, training: Training, host: Host) -> None:
    """Compare the gradients of the first micro-batch with those of exact products of the same weights; the log and run.json keep it.

    A run that is continued keeps what was measured when it began.
    """
    module, folder = session.denoiser.module, session.folder
    layers = product_layers(module)
    if not layers:
        return
    found = session.processes.from_main(lambda: folder.read().get(KEY))
    if found is None:
        rounded = first_gradients(session, training)
        with exact_products(module):
            exact = first_gradients(session, training)
        found = {"layers": len(layers), "weights": rounding_of(module), "gradients": difference(exact, rounded)}
        folder.update(**{KEY: found})
    host.log(
        f"matmul: {found['layers']} layers multiply in 8 bits; their weights are rounded by {found['weights']:.2%}, and the gradients of "
        f"the first batch differ by {found['gradients']:.2%} from those of exact products"
    )
