"""The stages that every build shares, one file each; what belongs to one format is in `compiler.backends`."""
