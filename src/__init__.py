"""The reference experiment framework for deep residual learning (He et al. 2015)."""
