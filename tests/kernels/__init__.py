"""The fused linear divergence."""
