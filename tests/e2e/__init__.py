"""Whole runs on real parts: a pretrained model, vLLM, Ray, TRL."""
