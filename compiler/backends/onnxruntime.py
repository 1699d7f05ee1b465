"""ONNX Runtime runs the fused ONNX and the Q/DQ model of `compiler.stages.quantize` as they are: nothing to convert."""
