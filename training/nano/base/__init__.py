"""The base models of the nano model, which Qwen2.5-VL and SANA bring ready-made: autoencoder and MLLM."""
