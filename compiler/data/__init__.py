"""Datasets: where labelled samples come from. A leaf: it imports nothing else of the project but its errors."""
