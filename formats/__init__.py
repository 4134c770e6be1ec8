"""What is computed: specs, formats, quantization, and the reference that judges every kernel."""
