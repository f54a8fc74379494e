"""Checkpoints of AMD Quark."""
