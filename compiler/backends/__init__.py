"""How each format is made: converter and quantizer stages, heavy, on the build host only. One file a backend."""
