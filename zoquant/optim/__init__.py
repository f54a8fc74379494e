"""How a step is made: probes, estimators, the optimizer, its calibration.

It knows views, and no format. Begin with `optimizer`.
"""
