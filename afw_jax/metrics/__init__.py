"""Segmentation metrics: Dice (DSC), Hausdorff distances (HD, HD95), ASSD and NSD of each organ."""

from afw_jax.metrics.scores import SCORES, UNITS, dice_per_class, score_case

__all__ = ['SCORES', 'UNITS', 'dice_per_class', 'score_case']
