"""Segmentation metrics: DSC, HD, HD95, ASSD and NSD per organ, under named conventions."""

from afw_jax.metrics.scores import SCORES, UNITS, dice_per_class, score_case

__all__ = ['SCORES', 'UNITS', 'dice_per_class', 'score_case']
