"""Builds the fastest artifact of a trained model that meets a target's requirements, with measured figures."""

__version__ = "0.1.0"
