"""sicog-trl: recipes with which a vision-language model teaches itself, on TRL."""

__version__ = "0.1.0.dev0"
