"""What numba compiles: vectors, their operations, and what the engine makes of them, from the ground up."""
