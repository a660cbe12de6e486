"""Evaluation: what a plugin says, through the node's own `predict`, beside the truth. No torch."""

from model_build.evaluation.qa import (
    TARGETS,
    Evaluation,
    Pair,
    Targets,
    evaluate,
    open_plugin,
    pair_up,
    predict_phantom,
)

__all__ = ["TARGETS", "Evaluation", "Pair", "Targets", "evaluate", "open_plugin", "pair_up", "predict_phantom"]
