"""What runs without a compiler: kernels, bound weights, kernel files, threads, the CUDA driver."""
