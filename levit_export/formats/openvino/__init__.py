"""OpenVINO, written from the network and executed by OpenVINO."""
