"""ONNX, written from the network and executed by ONNX Runtime."""
