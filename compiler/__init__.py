"""The way through: spec, frontend, build, kernel; quantization and the reference beside it."""
