"""GPUs without one: generated CUDA C++ on the CPU, and a driver for it."""
