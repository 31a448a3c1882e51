"""The model elsewhere: as ONNX for apps without Python, as StableHLO for programs with XLA."""
