"""The measures of a score: their names in files, their titles, and which way is better."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """How a measure is written in tables and drawn in plots."""

    title: str
    unit: str
    better: str
    """lower, higher, or "" for a measure that is neither good nor bad."""


COLUMNS = {
    "held_out": Column("validation loss", "mean squared error", "lower"),
    "held_out_even": Column("validation loss, even levels", "mean squared error", "lower"),
    "training_likeness": Column("image similarity", "to the training images, 0 to 1", "higher"),
    "prompt_likeness": Column("prompt similarity", "cosine", "higher"),
    "drift": Column("drift without the trigger", "1 - similarity to the base model", "lower"),
    "bleed": Column("bleed between triggers", "excess similarity to another concept's images", "lower"),
    "copies": Column("memorised images", "share of images", "lower"),
    "norm": Column("adapter norm", "Frobenius norm of all changes", ""),
    "growth": Column("norm ratio", "to the checkpoint before", ""),
}
"""The measures in the order of the table. The keys stand in CSV and JSON files and do not change."""
