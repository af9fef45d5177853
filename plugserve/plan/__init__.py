"""`plugserve plan`: memory, step times and throughput of a model on several GPUs, from measured parts. Torch-free."""
