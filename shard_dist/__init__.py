"""shard_dist: self-reframing distillation (SHARD, arXiv 2606.15517) at cluster scale."""

__version__ = "0.1.0"
